/* Rows of a compressed weight to bf16 or fp32: see kernel.py, and mebp/models/format.py for how codes lie. */

#include <stdint.h>
#include <string.h>

static inline float step_of(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t to_bf16(float value) { /* round to nearest, ties to even; weights are finite */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* A slot's codes of one group: shifted to the top bits of a byte, where byte x step is the weight. */
#define GROUP(SHIFT, MASK, STORE)                                                                   \
    for (int64_t j = done; j < count; j++) {                                                         \
        float value = (float)(int8_t)(uint8_t)(((uint8_t)codes[j] << (SHIFT)) & (MASK)) * step;      \
        out[j] = STORE(value);                                                                       \
    }

#define AS_IS(value) (value)

#if defined(__AVX512BW__)
#include <immintrin.h>

/* A group has no more than 16 different weights: round each once, then look 32 up with one instruction. */
static inline int64_t lookup_bf16(const int8_t *codes, uint16_t *out, int64_t count, const float *values, float step,
                                  int bits, int low) {
    const __m512i exact = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(step)));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(exact, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(exact, _mm512_set1_epi32(0x7fff)), odd); /* as to_bf16 does */
    const __m512i weights = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    const __m512i mask = _mm512_set1_epi16((short)((1 << bits) - 1));
    const __m128i shift = _mm_cvtsi32_si128(low);
    int64_t j = 0;
    for (; j + 32 <= count; j += 32) {
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes + j)));
        const __m512i index = _mm512_and_si512(_mm512_srl_epi16(wide, shift), mask);
        _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(index, weights));
    }
    return j;
}
#define LOOKUP_bf16 lookup_bf16
#else
#define LOOKUP_bf16(codes, out, count, values, step, bits, low) 0
#endif
#define LOOKUP_fp32(codes, out, count, values, step, bits, low) 0

#define ROWS(NAME, TYPE, STORE)                                                                      \
void unpack_##NAME(const int8_t *codes_of, const uint16_t *steps_of, TYPE *out_of,                   \
                   int64_t rows, int64_t cols, int64_t group, int64_t bits)                          \
{                                                                                                    \
    const int64_t slots = 8 / bits, width = cols / slots, groups = cols / group;                     \
    const uint8_t mask = (uint8_t)(0xff << (8 - bits));                                              \
    float values[16]; /* of every code, where there are so few: shifted to the top bits of a byte */ \
    for (int i = 0; i < 16; i++) values[i] = (float)(int8_t)(uint8_t)(i << (8 - bits));              \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (int64_t row = 0; row < rows; row++) {                                                       \
        const int8_t *line = codes_of + row * width;                                                 \
        const uint16_t *steps = steps_of + row * groups;                                             \
        for (int64_t slot = 0; slot < slots; slot++) {                                               \
            const int shift = (int)(8 - bits * (slot + 1));                                          \
            int64_t column = slot * width;                                                           \
            const int64_t end = column + width;                                                      \
            while (column < end) {                                                                   \
                const int64_t last = (column / group + 1) * group < end ? (column / group + 1) * group : end; \
                const int64_t count = last - column;                                                 \
                const float step = step_of(steps[column / group]);                                   \
                const int8_t *restrict codes = line + (column - slot * width);                       \
                TYPE *restrict out = out_of + row * cols + column;                                   \
                const int low = (int)(bits * slot);                                                  \
                const int64_t done = bits > 4 ? 0 : LOOKUP_##NAME(codes, out, count, values, step, (int)bits, low); \
                if (shift == 0) { GROUP(0, mask, STORE) }                                            \
                else if (shift == 4) { GROUP(4, mask, STORE) }                                       \
                else { GROUP(shift, mask, STORE) }                                                   \
                column = last;                                                                       \
            }                                                                                        \
        }                                                                                            \
    }                                                                                                \
}

ROWS(bf16, uint16_t, to_bf16)
ROWS(fp32, float, AS_IS)
