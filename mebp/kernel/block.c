/* The block product, oneDNN's or ours, and how its operands are packed. */

/* A block product: c (m, n) fp32 (+)= a (m, k) b, b with pairs of k interleaved: (k / 2, n, 2); n a multiple of 16. oneDNN's as torch
   exports it, or ours; and what a thread calls when it is through. */
typedef void (*Product)(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const uint16_t *a,
                        const uint16_t *b, float *c, bool interleaved);
typedef void (*Release)(bool interleaved);

#if defined(__AVX512F__)
enum { WIDE = 16, TALL = 8 };
#else
enum { WIDE = 8, TALL = 4 };
#endif
typedef float Floats __attribute__((vector_size(4 * WIDE), aligned(4)));
#if defined(__AVX512F__)
#define FUSED(a, b, c) (Floats) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#elif defined(__AVX2__) && defined(__FMA__)
#define FUSED(a, b, c) (Floats) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#else
#define FUSED(a, b, c) ((a) * (b) + (c))
#endif
typedef uint32_t Words __attribute__((vector_size(4 * WIDE), aligned(4)));

/* Rows [0, TALL) of a with 16 columns of b, every operand widened to fp32 where it is used. */
static inline void corner(int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const uint16_t *a, const uint32_t *b, float *c,
                          int64_t tall) {
    enum { PARTS = 16 / WIDE };
    Floats sums[TALL][PARTS];
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < PARTS; j++) sums[i][j] = add && i < tall ? *(const Floats *)(c + i * ldc + j * WIDE) : (Floats){0};
    const uint16_t *rows[TALL];
    for (int i = 0; i < TALL; i++) rows[i] = a + lesser(i, tall - 1) * lda;
    for (int64_t p = 0; p < k / 2; p++) {
        Floats low[PARTS], high[PARTS];
        for (int j = 0; j < PARTS; j++) {
            const Words pair = *(const Words *)(b + p * ldb + j * WIDE);
            low[j] = (Floats)(pair << 16);
            high[j] = (Floats)(pair & 0xffff0000u);
        }
        for (int i = 0; i < TALL; i++) {
            uint32_t both;
            memcpy(&both, rows[i] + 2 * p, 4);
            const Words pair = both - (Words){0};
            for (int j = 0; j < PARTS; j++) {
                sums[i][j] = FUSED((Floats)(pair << 16), low[j], sums[i][j]);
                sums[i][j] = FUSED((Floats)(pair & 0xffff0000u), high[j], sums[i][j]);
            }
        }
    }
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < PARTS; j++) *(Floats *)(c + i * ldc + j * WIDE) = sums[i][j];
}

static void own_product(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const uint16_t *a,
                        const uint16_t *b, float *c, bool interleaved) {
    for (int64_t j = 0; j < n; j += 16)
        for (int64_t i = 0; i < m; i += TALL)
            corner(k, lda, ldb, ldc, add, a + i * lda, (const uint32_t *)b + j, c + i * ldc + j, lesser(TALL, m - i));
}

static void own_release(bool interleaved) {}

static Product product = own_product;
static Release release = own_release;

/* Multiply with the block product at these addresses, ours where they are null. */
void use_product(void *given, void *end) {
    product = given ? (Product)given : own_product;
    release = given ? (Release)end : own_release;
}

enum {
    DEEP = 512,           /* of the inner dimension in one call: fixed, so that sums do not depend on the number of threads */
    MOST_TOKENS = 1024,   /* of one pass over a weight */
    ROW_COLUMNS = 128,    /* of one block's result, where a weight's rows are its columns */
    MOST_COLUMNS = 1024,  /* the same, where its columns are */
    GRAIN = 32,           /* and in multiples of this: block products are fastest on them */
    LEAST_COLUMNS = 64,   /* fewer than these, and a pass takes fewer tokens instead */
    LEAST_TOKENS = 64,
    LINE = 16             /* columns come in multiples of these */
};

#if defined(__AVX512BW__)
/* Transpose 16 x 16 pairs of bf16. */
static inline void transpose(const uint32_t *in, int64_t ld_in, uint32_t *out, int64_t ld_out) {
    __m512i a[16], t[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(in + i * ld_in);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(out + i * ld_out, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_storeu_si512(out + (4 + i) * ld_out, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
        _mm512_storeu_si512(out + (8 + i) * ld_out, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
        _mm512_storeu_si512(out + (12 + i) * ld_out, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
    }
}

/* Interleave 32 values of two rows. */
static inline void interleave(const uint16_t *even, const uint16_t *odd, uint16_t *out) {
    static const uint16_t order[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                       11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
                                       22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_loadu_si512(order + 32);
    const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(a, high, b));
}

/* Interleave 16 values of two rows. */
static inline void interleave_half(const uint16_t *even, const uint16_t *odd, uint16_t *out) {
    const __m256i a = _mm256_loadu_si256((const __m256i *)even), b = _mm256_loadu_si256((const __m256i *)odd);
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 16), _mm256_permute2x128_si256(low, high, 0x31));
}
#else
static inline void transpose(const uint32_t *in, int64_t ld_in, uint32_t *out, int64_t ld_out) {
    for (int k = 0; k < 16; k++)
        for (int i = 0; i < 16; i++) out[k * ld_out + i] = in[i * ld_in + k];
}

static inline void interleave(const uint16_t *even, const uint16_t *odd, uint16_t *out) {
    for (int j = 0; j < 32; j++) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
    }
}

static inline void interleave_half(const uint16_t *even, const uint16_t *odd, uint16_t *out) {
    for (int j = 0; j < 16; j++) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
    }
}
#endif

/* Interleave `count` values of two rows. */
static void interleave_rows(const uint16_t *even, const uint16_t *odd, int64_t count, uint16_t *out) {
    int64_t j = 0;
    for (; j + 32 <= count; j += 32) interleave(even + j, odd + j, out + 2 * j);
    for (; j + 16 <= count; j += 16) interleave_half(even + j, odd + j, out + 2 * j);
    for (; j < count; j++) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
    }
}

#if defined(__AVX512BF16__)
/* Columns [first, first + count) of rows k and k + 1 of a weight whose codes are bytes, interleaved; false, and `out` undefined, where
   codes are no bytes, groups or columns are no multiple of 16, or numbers are so small that the instruction that rounds takes them for
   0. */
static bool pair_of_bytes(const Weight *w, int64_t k, int64_t first, int64_t count, uint16_t *out) {
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleaved = _mm512_loadu_si512(order);
    if (w->bits != 8 || w->group % 16 || first % 16 || count % 16) return false;
    const int8_t *even = w->codes + k * w->cols + first, *odd = even + w->cols;
    const int64_t groups = w->cols / w->group;
    for (int64_t j = 0; j < count;) {
        const int64_t group = (first + j) / w->group, end = lesser(count, (group + 1) * w->group - first);
        const Group a = group_of(w, k, group, groups), b = group_of(w, k + 1, group, groups);
        if (!rounds_well(a) || !rounds_well(b)) return false;
        for (; j < end; j += 16) {
            const __m512bh both = _mm512_cvtne2ps_pbh(of_bytes(w, odd + j, b), of_bytes(w, even + j, a));
            _mm512_storeu_si512(out + 2 * j, _mm512_permutexvar_epi16(interleaved, (__m512i)both));
        }
    }
    return true;
}
#else
static bool pair_of_bytes(const Weight *w, int64_t k, int64_t first, int64_t count, uint16_t *out) { return false; }
#endif

/* A buffer of a thread's room. */
static void *cut_off(uint8_t **room, int64_t nbytes) {
    void *start = *room;
    *room += whole(nbytes, 64);
    return start;
}

/* Rows (count, width) as a right operand whose columns are the rows: (width / 2, columns, 2); columns past the last row repeat it. */
static void pack_across(const uint16_t *rows, int64_t ld, int64_t count, int64_t width, uint16_t *out, int64_t columns) {
    const uint32_t *last = (const uint32_t *)(rows + (count - 1) * ld);
    uint32_t *to = (uint32_t *)out;
    for (int64_t t = 0; t < columns; t += LINE)
        for (int64_t p = 0; p < width / 2; p += LINE) {
            if (t + LINE <= count && p + LINE <= width / 2) {
                transpose((const uint32_t *)(rows + t * ld) + p, ld / 2, to + p * columns + t, columns);
                continue;
            }
            for (int64_t i = 0; i < LINE; i++)
                for (int64_t j = p; j < lesser(p + LINE, width / 2); j++)
                    to[j * columns + t + i] = t + i < count ? ((const uint32_t *)(rows + (t + i) * ld))[j] : last[j];
        }
}

/* Rows (count, width) as a right operand whose inner dimension they are: (deep / 2, width, 2), with zeros from `count` to `deep`. */
static void pack_along(const uint16_t *rows, int64_t ld, int64_t count, int64_t width, uint16_t *out, int64_t deep) {
    for (int64_t t = 0; t < deep; t += 2, out += 2 * width) {
        const uint16_t *even = rows + t * ld, *odd = even + ld;
        if (t + 1 < count) {
            interleave_rows(even, odd, width, out);
            continue;
        }
        for (int64_t j = 0; j < width; j++) {
            out[2 * j] = t < count ? even[j] : 0;
            out[2 * j + 1] = 0;
        }
    }
}

/* Rows (m, width), transposed to (width, even), zeros in a column that is none. */
static void turn(const uint16_t *rows, int64_t ld, int64_t m, int64_t width, uint16_t *out, int64_t even) {
    for (int64_t first = 0; first < width; first += GRAIN)
        for (int64_t i = 0; i < m; i++) /* a row at a time: rows that lie a power of two apart share few lines of the cache */
            for (int64_t j = first; j < lesser(width, first + GRAIN); j++) out[j * even + i] = rows[i * ld + j];
    if (even > m)
        for (int64_t j = 0; j < width; j++) out[j * even + m] = 0;
}

/* W^T as a right operand: a slot's bytes [first, end) are the inner dimension, `count` rows from `row` on the columns (rows past
   the last one repeat it: their columns are not used). */
static void block_of_rows(const Weight *w, int64_t slot, int64_t row, int64_t count, int64_t first, int64_t end, uint16_t *out) {
    uint16_t lines[LINE * DEEP] __attribute__((aligned(64)));
    const uint16_t *values = values_of(w, row);
    if (values) {
        pack_across(values + first, w->cols, lesser(count, w->rows - row), end - first, out, count);
        return;
    }
    const int64_t pairs = (end - first) / 2;
    uint32_t *to = (uint32_t *)out;
    for (int64_t n = 0; n < count; n += LINE) {
        for (int64_t i = 0; i < LINE; i++) run_bf16(w, lesser(row + n + i, w->rows - 1), slot, first, end, lines + i * DEEP);
        int64_t k = 0;
        for (; k + LINE <= pairs; k += LINE) transpose((uint32_t *)lines + k, DEEP / 2, to + k * count + n, count);
        for (; k < pairs; k++)
            for (int64_t i = 0; i < LINE; i++) to[k * count + n + i] = ((uint32_t *)(lines + i * DEEP))[k];
    }
}

/* W as a right operand: rows [row, last) are the inner dimension (a missing one of the last pair is 0), a slot's bytes
   [first, first + count) the columns. */
static void block_of_columns(const Weight *w, int64_t slot, int64_t row, int64_t last, int64_t first, int64_t count,
                             uint16_t *out) {
    const uint16_t *values = values_of(w, row);
    if (values) {
        pack_along(values + first, w->cols, last - row, count, out, whole(last - row, 2));
        return;
    }
    uint16_t even[MOST_COLUMNS] __attribute__((aligned(64))), odd[MOST_COLUMNS] __attribute__((aligned(64)));
    for (int64_t k = row; k < last; k += 2, out += 2 * count) {
        if (k + 1 < last && pair_of_bytes(w, k, first, count, out)) continue;
        run_bf16(w, k, slot, first, first + count, even);
        if (k + 1 < last) run_bf16(w, k + 1, slot, first, first + count, odd);
        else memset(odd, 0, sizeof odd);
        interleave_rows(even, odd, count, out);
    }
}
