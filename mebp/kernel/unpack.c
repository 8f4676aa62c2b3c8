/* Rows of a compressed weight to bf16 or fp32. */

#define AS_IS(value) (value)

/* Weights [0, as many as whole vectors hold) of a group's `count` codes to bf16; returns how many. */
#if defined(__AVX512BW__)
static inline __m256i rounded(__m512 values) { /* as to_bf16 does */
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(values);
#endif
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

/* A group has no more than 16 different weights: round each once, then look 32 up with one instruction, which reads the low 5 bits of
   an index. The table repeats itself, so that bits above a code's own do not matter. */
static inline int64_t whole_vectors(const int8_t *codes, uint16_t *out, int64_t count, float step, int bits, int low) {
    int64_t j = 0;
    if (step != 0 && fabsf(step) < FLT_MIN) return 0; /* the instruction that rounds takes such numbers for 0 */
    if (bits > 4) {
        const __m512 steps = _mm512_set1_ps(step);
        for (; j + 16 <= count; j += 16) {
            const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(codes + j)));
            _mm256_storeu_si256((__m256i *)(out + j), rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(wide), steps)));
        }
        return j;
    }
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i tops = _mm512_srai_epi32(_mm512_slli_epi32(order, 32 - bits), 24); /* codes at the top of a byte */
    const __m256i half = rounded(_mm512_mul_ps(_mm512_cvtepi32_ps(tops), _mm512_set1_ps(step)));
    const __m512i weights = _mm512_broadcast_i64x4(half);
    const __m128i shift = _mm_cvtsi32_si128(low);
    for (; j + 32 <= count; j += 32) {
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes + j)));
        _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(_mm512_srl_epi16(wide, shift), weights));
    }
    return j;
}
#define VECTORS_bf16 whole_vectors
#else
#define VECTORS_bf16(codes, out, count, step, bits, low) 0
#endif
#define VECTORS_fp32(codes, out, count, step, bits, low) 0

/* A code shifted to the top bits of a byte: byte x step is the weight. */
#define GROUP(SHIFT, MASK, STORE)                                                                    \
    for (int64_t j = done; j < count; j++) {                                                         \
        float value = (float)(int8_t)(uint8_t)(((uint8_t)codes[j] << (SHIFT)) & (MASK)) * step;      \
        to[j] = STORE(value);                                                                        \
    }

/* run_x: the weights of one slot at bytes [first, end) of a row. unpack_x: rows of a weight, whole. */
#define UNPACK(NAME, TYPE, STORE)                                                                    \
static void run_##NAME(const Weight *w, int64_t row, int64_t slot, int64_t first, int64_t end, TYPE *out) { \
    const int bits = (int)w->bits, shift = (int)(8 - bits * (slot + 1));                             \
    const uint8_t mask = (uint8_t)(0xff << (8 - bits));                                              \
    const int64_t width = width_of(w), before = slot * width;                                        \
    const int64_t skipped = (uint32_t)(before + first) / (uint32_t)w->group; /* 32 bits divide several times as fast */ \
    const uint16_t *step_at = w->steps + row * w->groups + skipped;                                  \
    int64_t edge = (skipped + 1) * w->group - before; /* where the group ends */                     \
    for (int64_t byte = first; byte < end; step_at++, edge += w->group) {                            \
        const int64_t count = lesser(edge, end) - byte;                                              \
        const float step = from_bf16(*step_at);                                                      \
        const int8_t *restrict codes = w->codes + row * width + byte;                                \
        TYPE *restrict to = out + (byte - first);                                                    \
        const int64_t done = VECTORS_##NAME(codes, to, count, step, bits, bits * (int)slot);         \
        if (shift == 0) { GROUP(0, mask, STORE) }                                                    \
        else if (shift == 4) { GROUP(4, mask, STORE) }                                               \
        else { GROUP(shift, mask, STORE) }                                                           \
        byte += count;                                                                               \
    }                                                                                                \
}                                                                                                    \
void unpack_##NAME(const int8_t *codes, const uint16_t *steps, TYPE *out, int64_t rows, int64_t cols, int64_t group, \
                   int64_t bits) {                                                                   \
    const Weight w = {codes, steps, rows, cols, group, bits, cols / group};                                        \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (int64_t row = 0; row < rows; row++)                                                         \
        for (int64_t slot = 0; slot < slots_of(&w); slot++)                                          \
            run_##NAME(&w, row, slot, 0, width_of(&w), out + row * cols + slot * width_of(&w));      \
}

UNPACK(bf16, uint16_t, to_bf16)
UNPACK(fp32, float, AS_IS)
