/* Rows of a compressed weight to bf16 or fp32. */

#define AS_IS(value) (value)

/* vectors_bf16: weights [0, as many as whole vectors hold) of a group's `count` codes to bf16; returns how many. A group has no more
   than 16 different weights where a code has 4 bits or less: round each once, and look the codes up. */
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

/* 16 codes of 6 bits as weights: the low four from bit `low` of their bytes on, the upper two from bit `up`. */
static inline __m512 of_halves(const Weight *w, const int8_t *codes, const uint8_t *high, int64_t low, int64_t up, Group g) {
    const __m512i four = _mm512_and_si512(
        _mm512_srl_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes)), _mm_cvtsi32_si128((int)low)), _mm512_set1_epi32(15));
    const __m512i two = _mm512_and_si512(
        _mm512_srl_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)high)), _mm_cvtsi32_si128((int)up)), _mm512_set1_epi32(3));
    __m512i wide = _mm512_or_si512(four, _mm512_slli_epi32(two, 4));
    if (!w->is_unsigned) wide = _mm512_sub_epi32(_mm512_xor_si512(wide, _mm512_set1_epi32(32)), _mm512_set1_epi32(32));
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(g.scale)), _mm512_set1_ps(g.offset));
}

/* 16 codes of 8 bits as weights. */
static inline __m512 of_bytes(const Weight *w, const int8_t *codes, Group g) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)codes);
    const __m512i wide = w->is_unsigned ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepi8_epi32(bytes);
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(g.scale)), _mm512_set1_ps(g.offset));
}

static inline int64_t vectors_bf16(const Weight *w, const int8_t *codes, uint16_t *out, int64_t count, Group g, int64_t low) {
    int64_t j = 0;
    if (!rounds_well(g)) return 0;
    if (w->bits == 6) return 0;
    if (w->bits == 8) {
        for (; j + 16 <= count; j += 16) _mm256_storeu_si256((__m256i *)(out + j), rounded(of_bytes(w, codes + j, g)));
        return j;
    }
    /* one instruction looks 32 up; it reads the low 5 bits of an index: the table repeats itself */
    const __m512 values = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(w->levels), _mm512_set1_ps(g.scale)), _mm512_set1_ps(g.offset));
    const __m512i weights = _mm512_broadcast_i64x4(rounded(values));
    const __m128i shift = _mm_cvtsi32_si128((int)low);
    for (; j + 32 <= count; j += 32) {
        const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes + j)));
        _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(_mm512_srl_epi16(wide, shift), weights));
    }
    return j;
}
#elif defined(__AVX2__)
static inline int64_t vectors_bf16(const Weight *w, const int8_t *codes, uint16_t *out, int64_t count, Group g, int64_t low) {
    int64_t j = 0;
    if (w->bits > 4 || count < 32) return 0;
    uint8_t below[16], above[16];
    for (int i = 0; i < 16; i++) {
        const uint16_t weight = to_bf16(w->levels[i] * g.scale + g.offset);
        below[i] = (uint8_t)weight;
        above[i] = (uint8_t)(weight >> 8);
    }
    const __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)below));
    const __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)above));
    const __m128i shift = _mm_cvtsi32_si128((int)low);
    for (; j + 32 <= count; j += 32) {
        const __m256i bytes = _mm256_srl_epi16(_mm256_loadu_si256((const __m256i *)(codes + j)), shift);
        const __m256i index = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
        const __m256i a = _mm256_shuffle_epi8(first, index), b = _mm256_shuffle_epi8(second, index);
        const __m256i even = _mm256_unpacklo_epi8(a, b), odd = _mm256_unpackhi_epi8(a, b);
        _mm256_storeu_si256((__m256i *)(out + j), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(out + j + 16), _mm256_permute2x128_si256(even, odd, 0x31));
    }
    return j;
}
#else
#define vectors_bf16(w, codes, out, count, g, low) 0
#endif
#define vectors_fp32(w, codes, out, count, g, low) 0

/* Codes of 6 bits: `count` from byte `byte` of low slot `slot` on, within one group and one slot of the upper bits. */
#define HALVES(NAME, TYPE, STORE)                                                                             \
    static void halves_##NAME(const Weight *w, int64_t row, int64_t slot, int64_t byte, int64_t count, Group g, TYPE *restrict to) { \
        const int64_t quarter = w->cols / 4, column = slot * 2 * quarter + byte, low = 4 * slot, up = column / quarter * 2; \
        const int64_t flip = w->is_unsigned ? 0 : 32;                                                         \
        const uint8_t *restrict codes = (const uint8_t *)w->codes + row * 2 * quarter + byte;                 \
        const uint8_t *restrict high = w->high + row * quarter + column % quarter;                            \
        int64_t j = quick_##NAME(w, codes, high, count, low, up, g, to);                                      \
        for (; j < count; j++) {                                                                              \
            const int code = ((codes[j] >> low) & 15) | (((high[j] >> up) & 3) << 4);                         \
            to[j] = STORE((float)((code ^ (int)flip) - (int)flip) * g.scale + g.offset);                      \
        }                                                                                                     \
    }

#if defined(__AVX512BW__)
static inline int64_t quick_bf16(const Weight *w, const uint8_t *codes, const uint8_t *high, int64_t count, int64_t low, int64_t up,
                                 Group g, uint16_t *to) {
    int64_t j = 0;
    if (!rounds_well(g)) return 0;
    for (; j + 16 <= count; j += 16)
        _mm256_storeu_si256((__m256i *)(to + j), rounded(of_halves(w, (const int8_t *)codes + j, high + j, low, up, g)));
    return j;
}
#else
#define quick_bf16(w, codes, high, count, low, up, g, to) 0
#endif
#define quick_fp32(w, codes, high, count, low, up, g, to) 0
HALVES(bf16, uint16_t, to_bf16)
HALVES(fp32, float, AS_IS)

/* run_x: the weights of one slot at bytes [first, end) of a row. unpack_x: all rows of a weight. */
#define UNPACK(NAME, TYPE, STORE)                                                                             \
    static void run_##NAME(const Weight *w, int64_t row, int64_t slot, int64_t first, int64_t end, TYPE *out) { \
        const int64_t low = w->bits * slot, width = width_of(w), before = slot * width, groups = w->cols / w->group; \
        int64_t index = (uint32_t)(before + first) / (uint32_t)w->group; /* 32 bits divide several times as fast */ \
        int64_t edge = (index + 1) * w->group - before;                  /* where the group ends */           \
        for (int64_t byte = first; byte < end;) {                                                             \
            const int64_t middle = w->bits == 6 && byte < w->cols / 4 ? w->cols / 4 : end; /* where upper bits change their slot */ \
            const int64_t count = lesser(lesser(edge, end), middle) - byte;                                   \
            const Group g = group_of(w, row, index, groups);                                                  \
            const int8_t *restrict codes = w->codes + row * width + byte;                                     \
            TYPE *restrict to = out + (byte - first);                                                         \
            const int64_t done = vectors_##NAME(w, codes, to, count, g, low);                                 \
            if (w->bits == 6) halves_##NAME(w, row, slot, byte, count, g, to);                                \
            else if (w->bits < 8)                                                                                  \
                for (int64_t j = done; j < count; j++)                                                        \
                    to[j] = STORE(w->levels[((uint8_t)codes[j] >> low) & 15] * g.scale + g.offset);           \
            else if (w->is_unsigned)                                                                          \
                for (int64_t j = done; j < count; j++) to[j] = STORE((float)(uint8_t)codes[j] * g.scale + g.offset); \
            else                                                                                              \
                for (int64_t j = done; j < count; j++) to[j] = STORE((float)codes[j] * g.scale + g.offset);   \
            byte += count;                                                                                    \
            if (byte == edge) index++, edge += w->group;                                                      \
        }                                                                                                     \
    }                                                                                                         \
    void unpack_##NAME(const Weight *w, TYPE *out) {                                                          \
        _Pragma("omp parallel for schedule(static)")                                                          \
        for (int64_t row = 0; row < w->rows; row++)                                                           \
            for (int64_t slot = 0; slot < slots_of(w); slot++)                                                \
                run_##NAME(w, row, slot, 0, width_of(w), out + row * w->cols + slot * width_of(w));           \
    }

UNPACK(bf16, uint16_t, to_bf16)
UNPACK(fp32, float, AS_IS)
