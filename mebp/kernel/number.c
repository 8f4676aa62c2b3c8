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
static int omp_get_thread_num(void) { return 0; }
#endif
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

/* A matrix (rows, cols), compressed: a byte has 8 / bits slots, and slot s of byte b is column s x width + b of the row. Or, where bits
   are 16, of bf16 values as they are, in one slot. */
typedef struct {
    const int8_t *codes;   /* (rows, width) bytes, or (rows, cols) bf16 */
    const uint16_t *steps; /* (rows, cols / group) bf16, none where bits are 16 */
    int64_t rows, cols, group, bits, groups;
} Weight;

static inline int64_t slots_of(const Weight *w) { return w->bits < 8 ? 8 / w->bits : 1; }
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

static inline uint16_t to_bf16(float value) { /* round to nearest, ties to even; values are finite */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* e^x for x <= 0, to 2 units in the last place; 0 below -87. Cephes' polynomial (Moshier, 1992). */
static inline float exp_down(float x) {
    const float clipped = x < -87.0f ? -87.0f : x;
    const float shifted = clipped * 1.44269504f + 12582912.0f; /* 1.5 x 2^23: the sum's last bits are the rounded product */
    const float n = shifted - 12582912.0f;
    const float r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
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
