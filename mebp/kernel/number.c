/* What the kernels share: how a compressed weight lies (see mebp/models/format.py), bf16, and e^x. The parts of this folder are
   compiled as one source, in the order that library.py gives. */

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_num_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__FMA__) || defined(__aarch64__)
#define FUSED_ONE(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FUSED_ONE(a, b, c) ((a) * (b) + (c))
#endif

/* A matrix (rows, cols), compressed: weight = level x scale + offset. A byte has 8 / bits slots, and slot s of byte b is column
   s x width + b of the row. Or, where bits are 16, of bf16 values as they are, in one slot. weight.py has the same fields. */
typedef struct {
    const int8_t *codes;            /* (rows, width) bytes, or (rows, cols) bf16 */
    const uint8_t *high;            /* (rows, cols / 4): the upper two bits of codes of 6, in four slots; the low four are in `codes` */
    const void *scales, *offsets;   /* (rows, cols / group) of `type`; no offsets where they are null */
    const uint16_t *block_scales, *block_offsets; /* (rows, cols / block) fp16, where scales are bytes */
    const float *levels;            /* 16, by the low bits of a code shifted down; null where bits are more */
    int64_t rows, cols, group, block, bits, type;
    int64_t is_unsigned, zero_point; /* with a zero point, offsets are bytes: weight = (level - offset) x scale */
} Weight;

enum { BF16, FP16, INT8, UINT8 }; /* types of scales and offsets */

static inline int64_t slots_of(const Weight *w) { return w->bits >= 8 ? 1 : w->bits == 6 ? 2 : 8 / w->bits; }
static inline int64_t width_of(const Weight *w) { return w->cols / slots_of(w); }
static inline const uint16_t *values_of(const Weight *w, int64_t row) {
    return w->bits == 16 ? (const uint16_t *)w->codes + row * w->cols : 0;
}
static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }
static inline int64_t whole(int64_t count, int64_t size) { return pieces(count, size) * size; }

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline float from_fp16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t wide = rest << 13;
    float value;
    if (rest >= 0x7c00) wide += 0x70000000;      /* infinite, or no number */
    else if (rest >= 0x0400) wide += 0x38000000; /* the exponents' difference */
    else {                                       /* smaller than a normal number: so many 2^-24 */
        value = (float)rest * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    wide |= sign;
    memcpy(&value, &wide, 4);
    return value;
}

/* What a group of a row is multiplied by, and what is added. */
typedef struct {
    float scale, offset;
} Group;

static inline float part_of(const void *values, int64_t type, int64_t at) {
    switch (type) {
        case BF16: return from_bf16(((const uint16_t *)values)[at]);
        case FP16: return from_fp16(((const uint16_t *)values)[at]);
        case INT8: return (float)((const int8_t *)values)[at];
        default: return (float)((const uint8_t *)values)[at];
    }
}

/* Group `index` of the `groups` of a row. */
static inline Group group_of(const Weight *w, int64_t row, int64_t index, int64_t groups) {
    const int64_t at = row * groups + index;
    Group found = {part_of(w->scales, w->type, at), w->offsets ? part_of(w->offsets, w->zero_point ? UINT8 : w->type, at) : 0};
    if (w->zero_point) found.offset *= -found.scale;
    if (w->block) {
        const int64_t block = row * (w->cols / w->block) + index * w->group / w->block;
        found.scale *= from_fp16(w->block_scales[block]);
        if (w->offsets) found.offset *= from_fp16(w->block_offsets[block]);
    }
    return found;
}

/* Whether the instruction that rounds to bf16, which takes tiny numbers for 0, does what to_bf16 does on a group's weights. */
static inline bool rounds_well(Group g) {
    const float least = 7.9e-31f; /* 2^-100: differences of such numbers are normal ones */
    return (g.scale == 0 || fabsf(g.scale) >= least) && (g.offset == 0 || fabsf(g.offset) >= least);
}

static inline uint16_t to_bf16(float value) { /* round to nearest, ties to even; values are finite */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x for x <= 0, to 2 units in the last place; 0 below -87. Cephes' polynomial (Moshier, 1992). */
static inline float exp_down(float x) {
    const float clipped = x < -87.0f ? -87.0f : x;
    const float shifted = FUSED_ONE(clipped, 1.44269504f, 12582912.0f); /* 1.5 x 2^23: the sum's last bits are the rounded product */
    const float n = shifted - 12582912.0f;
    const float r = FUSED_ONE(n, 2.12194440e-4f, FUSED_ONE(n, -0.693359375f, clipped));
    float p = 1.9875691500e-4f;
    p = FUSED_ONE(p, r, 1.3981999507e-3f);
    p = FUSED_ONE(p, r, 8.3334519073e-3f);
    p = FUSED_ONE(p, r, 4.1665795894e-2f);
    p = FUSED_ONE(p, r, 1.6666665459e-1f);
    p = FUSED_ONE(p, r, 5.0000001201e-1f);
    p = FUSED_ONE(p * r, r, r) + 1.0f;
    int32_t bits;
    memcpy(&bits, &p, 4);
    bits += (int32_t)n << 23;
    memcpy(&p, &bits, 4);
    return x < -87.0f ? 0.0f : p;
}

static float largest(const float *values, int64_t count, float so_far) {
    float top = so_far;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; j++) top = values[j] > top ? values[j] : top;
    return top;
}

/* values = e^(values - top), or to `typed` in bf16 where it is not null; returns their sum. */
static float exponentials(float *restrict values, uint16_t *restrict typed, int64_t count, float top) {
    float sum = 0;
    if (typed) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < count; j++) {
            const float one = exp_down(values[j] - top);
            sum += one;
            typed[j] = to_bf16(one);
        }
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) sum += values[j] = exp_down(values[j] - top);
    return sum;
}
