/* The compiled kernels: see library.py for how they are built, and mebp/models/format.py for how codes lie.

   unpack_bf16, unpack_fp32   rows of a compressed weight
   multiply                   activations times a compressed weight, unpacked block by block where it is multiplied
   multiply_dense             activations times a matrix in bf16
   lora_down, lora_gradients  what an adapter adds
   softmax_tile               one tile of the head's logits taken into its running sums
   norm, glu, rotate          and their backward: each value read and written once
   attention                  and its backward
*/

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

/* A compressed matrix (rows, cols): a byte has 8 / bits slots, and slot s of byte b is column s x width + b of the row. */
typedef struct {
    const int8_t *codes;   /* (rows, width) */
    const uint16_t *steps; /* (rows, cols / group) bf16 */
    int64_t rows, cols, group, bits, groups;
} Weight;

static inline int64_t slots_of(const Weight *w) { return 8 / w->bits; }
static inline int64_t width_of(const Weight *w) { return w->cols * w->bits / 8; }
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

/* ---- unpacking ---- */

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

/* ---- products ---- */

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
                sums[i][j] += (Floats)(pair << 16) * low[j];
                sums[i][j] += (Floats)(pair & 0xffff0000u) * high[j];
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
    MOST_COLUMNS = 512,   /* the same, where its columns are */
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
        int64_t j = 0;
        if (t + 1 < count)
            for (; j + 32 <= width; j += 32) interleave(even + j, odd + j, out + 2 * j);
        for (; j < width; j++) {
            out[2 * j] = t < count ? even[j] : 0;
            out[2 * j + 1] = t + 1 < count ? odd[j] : 0;
        }
    }
}

/* Rows (m, width), transposed to (width, even), zeros in a column that is none. */
static void turn(const uint16_t *rows, int64_t ld, int64_t m, int64_t width, uint16_t *out, int64_t even) {
    for (int64_t j = 0; j < width; j++) {
        for (int64_t i = 0; i < m; i++) out[j * even + i] = rows[i * ld + j];
        if (even > m) out[j * even + m] = 0;
    }
}

/* W^T as a right operand: a slot's bytes [first, end) are the inner dimension, `count` rows from `row` on the columns (rows past
   the last one repeat it: their columns are not used). */
static void block_of_rows(const Weight *w, int64_t slot, int64_t row, int64_t count, int64_t first, int64_t end, uint16_t *out) {
    uint16_t lines[LINE * DEEP] __attribute__((aligned(64)));
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
    uint16_t even[MOST_COLUMNS] __attribute__((aligned(64))), odd[MOST_COLUMNS] __attribute__((aligned(64)));
    for (int64_t k = row; k < last; k += 2, out += 2 * count) {
        run_bf16(w, k, slot, first, first + count, even);
        if (k + 1 < last) run_bf16(w, k + 1, slot, first, first + count, odd);
        else memset(odd, 0, sizeof odd);
        int64_t j = 0;
        for (; j + 32 <= count; j += 32) interleave(even + j, odd + j, out + 2 * j);
        for (; j < count; j++) {
            out[2 * j] = even[j];
            out[2 * j + 1] = odd[j];
        }
    }
}

/* Where a product's results go: (tokens, ld), bf16 or fp32, set or added to, with a bias (bf16) or none. */
typedef struct {
    void *values;
    int64_t ld;
    bool fp32, add;
    const uint16_t *bias;
} Result;

/* Columns [column, column + n) of tokens [token, token + m) from sums c. */
static void put(const Result *r, int64_t token, int64_t column, const float *c, int64_t ldc, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++) {
        const float *restrict sums = c + i * ldc;
        const uint16_t *bias = r->bias ? r->bias + column : 0;
        const int64_t at = (token + i) * r->ld + column;
        if (r->fp32) {
            float *restrict out = (float *)r->values + at;
            for (int64_t j = 0; j < n; j++) out[j] = (r->add ? out[j] : 0) + sums[j] + (bias ? from_bf16(bias[j]) : 0);
        } else {
            uint16_t *restrict out = (uint16_t *)r->values + at;
            if (bias)
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j] + from_bf16(bias[j]) + (r->add ? from_bf16(out[j]) : 0));
            else if (r->add)
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j] + from_bf16(out[j]));
            else
                for (int64_t j = 0; j < n; j++) out[j] = to_bf16(sums[j]);
        }
    }
}

/* How a product is cut: tokens of a pass, columns of a block (of each slot), and the inner dimension of a call. */
typedef struct {
    int64_t tokens, columns, deep, blocks;
} Cut;

/* The largest cut whose sums and block of weights fit a thread's room, of `most` columns at most and in multiples of `grain` where
   there are many; blocks == 0 where none fits. */
static Cut cut_for(int64_t tokens, int64_t columns, int64_t depth, int64_t slots, int64_t most, int64_t grain, int64_t room,
                   int64_t threads) {
    Cut cut = {lesser(tokens, MOST_TOKENS), 0, whole(lesser(depth, DEEP), 2), 0};
    for (;;) {
        const int64_t fitting = room / (4 * slots * cut.tokens + 2 * cut.deep) / LINE * LINE;
        cut.columns = lesser(lesser(fitting, most), whole(columns, LINE));
        if (cut.columns * slots >= LEAST_COLUMNS || cut.columns >= columns || cut.tokens <= LEAST_TOKENS) break;
        cut.tokens = whole(cut.tokens / 2, LINE);
    }
    if (cut.columns > grain) cut.columns = cut.columns / grain * grain;
    if (cut.columns < LINE) return cut;
    const int64_t least = pieces(columns, cut.columns * threads), unit = columns > grain * threads ? grain : LINE;
    for (int64_t rounds = least; rounds < least + 4; rounds++) { /* every thread gets as many blocks, where that can be */
        const int64_t size = whole(pieces(columns, rounds * threads), unit);
        if (rounds == least) cut.columns = lesser(cut.columns, size);
        if (pieces(columns, size) % threads == 0) {
            cut.columns = lesser(cut.columns, size);
            break;
        }
    }
    cut.blocks = pieces(columns, cut.columns);
    return cut;
}

/* result (tokens, rows) = x (tokens, cols) W^T, where `transposed`, or (tokens, cols) = x (tokens, rows) W; in addition left (tokens,
   rank) times right^T, right (rows, rank), or times right (rank, cols), where rank is not 0.

   One parallel region: a thread unpacks a block of the weight to its part of `room` and multiplies it there. False where the room
   is too small or the shape is odd: nothing is computed then. */
bool multiply(const int8_t *codes, const uint16_t *steps, int64_t rows, int64_t cols, int64_t group, int64_t bits, bool transposed,
              const uint16_t *x, int64_t ldx, int64_t tokens, void *values, int64_t ld, bool fp32, bool add, const uint16_t *bias,
              const uint16_t *left, const uint16_t *right, int64_t rank, uint8_t *room, int64_t nbytes) {
    const Weight w = {codes, steps, rows, cols, group, bits, cols / group};
    const Result result = {values, ld, fp32, add, bias};
    const int64_t slots = slots_of(&w), width = width_of(&w), threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64;
    const Cut cut = transposed ? cut_for(tokens, rows, width, 1, ROW_COLUMNS, LINE, own, threads)
                               : cut_for(tokens, width, rows, slots, MOST_COLUMNS / slots, GRAIN, own, threads);
    if (rank % 2 || rank > cut.deep) return false;
    if (!cut.blocks || width % 2 || cols % slots || (!transposed && (width % LINE || rows % 2))) return false;
#pragma omp parallel
    {
        float *sums = (float *)(room + own * omp_get_thread_num());
        uint16_t *block = (uint16_t *)(sums + cut.tokens * cut.columns * (transposed ? 1 : slots));
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < cut.blocks; b++) {
            const int64_t first = b * cut.columns, count = lesser(cut.columns, (transposed ? rows : width) - first);
            const int64_t n = whole(count, LINE);
            for (int64_t token = 0; token < tokens; token += cut.tokens) {
                const int64_t m = lesser(cut.tokens, tokens - token);
                const uint16_t *from = x + token * ldx;
                if (transposed) {
                    for (int64_t k = 0; k < width; k += cut.deep)
                        for (int64_t slot = 0; slot < slots; slot++) {
                            const int64_t end = lesser(width, k + cut.deep);
                            block_of_rows(&w, slot, first, n, k, end, block);
                            product(m, n, end - k, ldx, n, n, k + slot > 0, from + slot * width + k, block, sums, true);
                        }
                    if (rank) {
                        pack_across(right + first * rank, rank, count, rank, block, n);
                        product(m, n, rank, rank, n, n, true, left + token * rank, block, sums, true);
                    }
                    put(&result, token, first, sums, n, m, count);
                } else {
                    for (int64_t k = 0; k < rows; k += cut.deep)
                        for (int64_t slot = 0; slot < slots; slot++) {
                            const int64_t end = lesser(rows, k + cut.deep);
                            block_of_columns(&w, slot, k, end, first, count, block);
                            product(m, count, end - k, ldx, count, count * slots, k > 0, from + k, block, sums + slot * count, true);
                        }
                    for (int64_t slot = 0; rank && slot < slots; slot++) {
                        pack_along(right + slot * width + first, cols, rank, count, block, rank);
                        product(m, count, rank, rank, count, count * slots, true, left + token * rank, block, sums + slot * count, true);
                    }
                    for (int64_t slot = 0; slot < slots; slot++)
                        put(&result, token, slot * width + first, sums + slot * count, count * slots, m, count);
                }
            }
        }
        release(true);
    }
    return true;
}

/* result (tokens, n) = x (tokens, k) times b (k, n), or times b^T, b (n, k), where `transposed`: for processors whose libraries crawl
   on bf16. A thread takes some columns at a time, packed on its stack. */
void multiply_dense(const uint16_t *x, int64_t ldx, const uint16_t *b, int64_t ldb, int64_t tokens, int64_t n, int64_t k,
                    bool transposed, uint16_t *values, int64_t ld, bool add) {
    enum { STRIP = 64, ROWS = 256 };
    const Result result = {values, ld, false, add, 0};
#pragma omp parallel
    {
        uint16_t block[DEEP * STRIP];
        float sums[ROWS * STRIP];
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int64_t first = 0; first < n; first += STRIP)
            for (int64_t token = 0; token < tokens; token += ROWS) {
                const int64_t count = lesser(STRIP, n - first), wide = whole(count, LINE), m = lesser(ROWS, tokens - token);
                for (int64_t from = 0; from < k; from += DEEP) {
                    const int64_t deep = lesser(DEEP, k - from), even = whole(deep, 2);
                    for (int64_t i = 0; i < even; i++)
                        for (int64_t j = 0; j < wide; j++)
                            block[(i / 2 * wide + j) * 2 + i % 2] =
                                i >= deep || j >= count ? 0
                                : transposed            ? b[(first + j) * ldb + from + i]
                                                        : b[(from + i) * ldb + first + j];
                    product(m, wide, even, ldx, wide, wide, from > 0, x + token * ldx + from, block, sums, true);
                }
                put(&result, token, first, sums, wide, m, count);
            }
        release(true);
    }
}

/* ---- adapters ---- */

enum { TOKENS = 64, MOST_RANK = 256, LORA_COLUMNS = 256, LEAST_LORA_COLUMNS = 32 };

/* Columns of pairs of A^T or B, (inner / 2, wide, 2), zeros from `rank` to `wide`: from w (rank, inner), or (inner, rank) where
   `along`. Called by all threads of a region. */
static void pack_narrow(const uint16_t *w, int64_t inner, int64_t rank, int64_t wide, bool along, uint16_t *out) {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < inner / 2; p++)
        for (int64_t r = 0; r < wide; r++)
            for (int64_t i = 0; i < 2; i++) {
                const int64_t at = along ? (2 * p + i) * rank + r : r * inner + 2 * p + i;
                out[(p * wide + r) * 2 + i] = r < rank ? w[at] : 0;
            }
}

/* h (tokens, rank) = x (tokens, inner) packed; and, where `turned` is not null, the same as (wide, even) rows. Called by all threads
   of a region. */
static void narrow(const uint16_t *x, int64_t tokens, int64_t inner, const uint16_t *packed, int64_t rank, int64_t wide, uint16_t *h,
                   uint16_t *turned, int64_t even) {
    float sums[TOKENS * MOST_RANK];
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t += TOKENS) {
        const int64_t m = lesser(TOKENS, tokens - t);
        product(m, wide, inner, inner, wide, wide, false, x + t * inner, packed, sums, true);
        for (int64_t i = 0; i < m; i++)
            for (int64_t r = 0; r < rank; r++) h[(t + i) * rank + r] = to_bf16(sums[i * wide + r]);
        if (turned)
            for (int64_t r = 0; r < wide; r++) {
                for (int64_t i = 0; i < m; i++) turned[r * even + t + i] = to_bf16(sums[i * wide + r]);
                if (t + m == tokens && even > tokens) turned[r * even + tokens] = 0;
            }
    }
}

/* h (tokens, rank) = x (tokens, cols) A^T, A (rank, cols). False where the room is too small: nothing is computed then. */
bool lora_down(const uint16_t *x, const uint16_t *A, uint16_t *h, int64_t tokens, int64_t cols, int64_t rank, uint8_t *room,
               int64_t nbytes) {
    const int64_t wide = whole(rank, LINE);
    if (cols % 2 || wide > MOST_RANK || nbytes < 2 * cols * wide) return false;
#pragma omp parallel
    {
        pack_narrow(A, cols, rank, wide, false, (uint16_t *)room);
        narrow(x, tokens, cols, (uint16_t *)room, rank, wide, h, 0, 0);
        release(true);
    }
    return true;
}

/* sums (wide, n) = left (wide, even) times columns of x (tokens, ld), a part of the tokens at a time. */
static void gather_tokens(const uint16_t *left, const uint16_t *x, int64_t ld, int64_t tokens, int64_t even, int64_t wide, int64_t n,
                          uint16_t *block, float *sums) {
    for (int64_t t = 0; t < even; t += DEEP) {
        const int64_t deep = lesser(DEEP, even - t);
        pack_along(x + t * ld, ld, tokens - t, n, block, deep);
        product(wide, n, deep, even, n, n, t > 0, left + t, block, sums, true);
    }
}

/* With x (tokens, cols), dy (tokens, outs), A (rank, cols) and B (outs, rank), which has the scale in it: h = x A^T, dh = dy B,
   dA (rank, cols) = dh^T x, dB (outs, rank) = scale dy^T h, both fp32. As lora_down. */
bool lora_gradients(const uint16_t *x, const uint16_t *dy, const uint16_t *A, const uint16_t *B, uint16_t *h, uint16_t *dh, float *dA,
                    float *dB, float scale, int64_t tokens, int64_t cols, int64_t outs, int64_t rank, uint8_t *room, int64_t nbytes) {
    const int64_t wide = whole(rank, LINE), even = whole(tokens, 2), threads = omp_get_max_threads();
    const int64_t shared = whole(2 * cols * wide, 64) + whole(2 * outs * wide, 64) + 2 * whole(2 * even * wide, 64);
    const int64_t own = (nbytes - shared) / threads / 64 * 64 - 128, deep = lesser(DEEP, even);
    int64_t columns = LORA_COLUMNS;
    while (columns >= LEAST_LORA_COLUMNS && columns * (2 * deep + 4 * wide) > own) columns /= 2;
    if (cols % LINE || outs % LINE || wide > MOST_RANK || columns < LEAST_LORA_COLUMNS) return false;
    uint8_t *rest = room;
    uint16_t *packed_A = cut_off(&rest, 2 * cols * wide), *packed_B = cut_off(&rest, 2 * outs * wide);
    uint16_t *h_rows = cut_off(&rest, 2 * even * wide), *dh_rows = cut_off(&rest, 2 * even * wide);
#pragma omp parallel
    {
        uint8_t *mine = rest + (own + 128) * omp_get_thread_num();
        uint16_t *block = cut_off(&mine, 2 * columns * deep);
        float *sums = cut_off(&mine, 4 * columns * wide);
        pack_narrow(A, cols, rank, wide, false, packed_A);
        pack_narrow(B, outs, rank, wide, true, packed_B);
        narrow(x, tokens, cols, packed_A, rank, wide, h, h_rows, even);
        narrow(dy, tokens, outs, packed_B, rank, wide, dh, dh_rows, even);
        const int64_t of_A = pieces(cols, columns);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < of_A + pieces(outs, columns); b++) {
            const bool is_A = b < of_A;
            const int64_t width = is_A ? cols : outs, first = (is_A ? b : b - of_A) * columns, n = lesser(columns, width - first);
            gather_tokens(is_A ? dh_rows : h_rows, (is_A ? x : dy) + first, width, tokens, even, wide, n, block, sums);
            if (is_A)
                for (int64_t r = 0; r < rank; r++) memcpy(dA + r * cols + first, sums + r * n, 4 * n);
            else
                for (int64_t j = 0; j < n; j++)
                    for (int64_t r = 0; r < rank; r++) dB[(first + j) * rank + r] = scale * sums[r * n + j];
        }
        release(true);
    }
    return true;
}

/* ---- the head's softmax ---- */

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

/* Take logits (tokens, count) of the vocabulary from `low` on into the running maximum `highest`, the sum `total` of e^(logit -
   highest), the label's logit `picked`, and rescale `weighted` (tokens, cols; may be null). The exponentials take the logits' place,
   or go to `typed` (tokens, count) in bf16 where that is not null. A maximum that is not finite is left to spoil the sums. */
void softmax_tile(float *logits, int64_t tokens, int64_t count, int64_t low, const int64_t *labels, float *highest, float *total,
                  float *picked, float *weighted, int64_t cols, uint16_t *typed) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tokens; i++) {
        float *row = logits + i * count;
        if (labels[i] >= low && labels[i] < low + count) picked[i] = row[labels[i] - low];
        const float top = largest(row, count, highest[i]), shrink = highest[i] < top ? exp_down(highest[i] - top) : 1.0f;
        highest[i] = top;
        total[i] = total[i] * shrink + exponentials(row, typed ? typed + i * count : 0, count, top);
        if (weighted && shrink != 1.0f)
            for (int64_t j = 0; j < cols; j++) weighted[i * cols + j] *= shrink;
    }
}

/* ---- element-wise ops: bf16 in and out, fp32 in between, each value rounded once ---- */

static inline float dot(const uint16_t *restrict a, const uint16_t *restrict b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) sum += from_bf16(a[j]) * from_bf16(b[j]);
    return sum;
}

/* y (rows, cols) = x r (w + offset), r = 1 / sqrt(mean(x^2) + eps) */
void norm(const uint16_t *x, const uint16_t *w, uint16_t *y, int64_t rows, int64_t cols, float eps, float offset) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *restrict in = x + i * cols;
        uint16_t *restrict out = y + i * cols;
        const float r = 1.0f / sqrtf(dot(in, in, cols) / (float)cols + eps);
        for (int64_t j = 0; j < cols; j++) out[j] = to_bf16(from_bf16(in[j]) * r * (from_bf16(w[j]) + offset));
    }
}

/* dx (+)= r (g - xhat mean(g xhat)), g = dy (w + offset), xhat = x r; dx may be dy */
void norm_backward(const uint16_t *x, const uint16_t *w, const uint16_t *dy, uint16_t *dx, int64_t rows, int64_t cols, float eps,
                   float offset, bool add) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *in = x + i * cols, *up = dy + i * cols;
        uint16_t *out = dx + i * cols;
        const float r = 1.0f / sqrtf(dot(in, in, cols) / (float)cols + eps);
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < cols; j++) along += from_bf16(up[j]) * (from_bf16(w[j]) + offset) * from_bf16(in[j]);
        const float by = r * r * along / (float)cols; /* mean(g xhat) r */
#pragma omp simd
        for (int64_t j = 0; j < cols; j++) {
            const float g = from_bf16(up[j]) * (from_bf16(w[j]) + offset), value = r * (g - from_bf16(in[j]) * by);
            out[j] = to_bf16(value + (add ? from_bf16(out[j]) : 0.0f));
        }
    }
}

enum { SILU, GELU_TANH };

/* e^-|x| */
static inline float decay(float x) { return exp_down(x < 0 ? x : -x); }

static inline float sigmoid(float x) {
    const float e = decay(x);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

static inline float tanh_of(float x) {
    const float e = decay(2.0f * x), t = (1.0f - e) / (1.0f + e);
    return x < 0 ? -t : t;
}

/* gelu by tanh: x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline float gelu_inner(float x) { return 0.7978845608f * x * (1.0f + 0.044715f * x * x); }

static inline float activated(float x, int which) {
    return which == SILU ? x * sigmoid(x) : 0.5f * x * (1.0f + tanh_of(gelu_inner(x)));
}

static inline float slope(float x, int which) {
    if (which == SILU) {
        const float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
    const float t = tanh_of(gelu_inner(x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x * x);
}

enum { PART = 4096 }; /* elements that a thread takes at a time */

/* Over parts of `count` elements, a thread each: a block at every j. Operands may be one another, never overlap otherwise. */
#define EACH(...)                                                                                    \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (int64_t part = 0; part < count; part += PART) {                                             \
        const int64_t end = lesser(count, part + PART);                                              \
        _Pragma("omp simd")                                                                           \
        for (int64_t j = part; j < end; j++) __VA_ARGS__                                               \
    }

/* y = act(gate) up; and dgate = dy up act'(gate), dup = dy act(gate) */
#define GLU(NAME, WHICH)                                                                             \
void glu_##NAME(const uint16_t *gate, const uint16_t *up, uint16_t *y, int64_t count) {              \
    EACH({ y[j] = to_bf16(activated(from_bf16(gate[j]), WHICH) * from_bf16(up[j])); })               \
}                                                                                                    \
void glu_backward_##NAME(const uint16_t *dy, const uint16_t *gate, const uint16_t *up, uint16_t *dgate, uint16_t *dup, \
                         int64_t count) {                                                            \
    EACH({                                                                                           \
        const float g = from_bf16(gate[j]), d = from_bf16(dy[j]), u = from_bf16(up[j]);              \
        dgate[j] = to_bf16(d * u * slope(g, WHICH));                                                 \
        dup[j] = to_bf16(d * activated(g, WHICH));                                                   \
    })                                                                                               \
}

GLU(silu, SILU)
GLU(gelu_tanh, GELU_TANH)

/* y (rows, heads, 2 half) = x rotated by the angles of its position (row % seq): (x1 c - x2 s, x2 c + x1 s), s times `sign`. y may
   be x. cos and sin are (seq, half). */
void rotate(const uint16_t *x, uint16_t *y, const uint16_t *cos_of, const uint16_t *sin_of, int64_t rows, int64_t seq, int64_t heads,
            int64_t half, float sign) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const uint16_t *c = cos_of + (i % seq) * half, *s = sin_of + (i % seq) * half;
        for (int64_t h = 0; h < heads; h++) {
            const uint16_t *in = x + (i * heads + h) * 2 * half;
            uint16_t *out = y + (i * heads + h) * 2 * half;
#pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                const float a = from_bf16(in[j]), b = from_bf16(in[half + j]);
                const float cosine = from_bf16(c[j]), sine = sign * from_bf16(s[j]);
                out[j] = to_bf16(a * cosine - b * sine);
                out[half + j] = to_bf16(b * cosine + a * sine);
            }
        }
    }
}

/* ---- attention ---- */

enum { QUERIES = 64, LEAST_QUERIES = 16, SPANS = 8 };

/* Where the tensors of one attention lie: q, y and their gradients (batch, seq, heads, width), k and v (batch, seq, kv_heads, width).
   A query at t sees keys (t - window, t], all up to t where window is 0. */
typedef struct {
    int64_t batch, seq, heads, kv_heads, width, window;
    float scale;
} Attention;

/* Keys that a block of queries is multiplied with: all that it sees, in one of a few numbers, since a library keeps a kernel each. */
typedef struct {
    int64_t low, count;
} Span;

static inline int64_t keys_of(const Attention *a) { return whole(a->seq, LINE); }

static Span span_of(const Attention *a, int64_t first, int64_t end) {
    const int64_t keys = keys_of(a), unit = whole(pieces(keys, SPANS), LINE), seen = a->window ? first - a->window + 1 : 0;
    const int64_t low = seen > 0 ? seen / unit * unit : 0, high = lesser(keys, whole(end, unit));
    return (Span){low, high - low};
}

/* Scores [first, end) of a row become e^(scale (score - highest)), the others 0; returns the sum. */
static float spread(float *row, int64_t count, int64_t first, int64_t end, float scale) {
    const float top = largest(row + first, end - first, row[first]);
    for (int64_t j = 0; j < first; j++) row[j] = 0;
    for (int64_t j = end; j < count; j++) row[j] = 0;
    for (int64_t j = first; j < end; j++) row[j] = scale * (row[j] - top);
    return exponentials(row + first, 0, end - first, 0.0f);
}

/* The keys that the query at t sees, from those of its block's span on. */
static inline int64_t first_key(const Attention *a, Span span, int64_t t) {
    return a->window && t - a->window + 1 > span.low ? t - a->window + 1 - span.low : 0;
}

/* Queries of a block for which a thread's room is enough; 0 where there is none. */
static int64_t block_of_queries(const Attention *a, int64_t room, int64_t fixed, int64_t per_query) {
    int64_t queries = QUERIES;
    while (queries >= LEAST_QUERIES && fixed + queries * per_query > room) queries /= 2;
    return queries >= LEAST_QUERIES ? queries : 0;
}

static bool attends(const Attention *a, int64_t threads) {
    return a->width % LINE == 0 && a->batch * a->kv_heads >= threads;
}

/* y = softmax(scale q k^T) v. A thread takes a key head at a time. False where the room is too small, or there are more threads than
   key heads: nothing is computed then. */
bool attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *y, int64_t batch, int64_t seq, int64_t heads,
               int64_t kv_heads, int64_t width, int64_t window, float scale, uint8_t *room, int64_t nbytes) {
    const Attention a = {batch, seq, heads, kv_heads, width, window, scale};
    const int64_t threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64, keys = keys_of(&a), group = heads / kv_heads;
    const int64_t fixed = 2 * whole(2 * keys * width, 64) + 3 * 64;
    const int64_t queries = block_of_queries(&a, own, fixed, 6 * keys + 4 * width);
    if (!attends(&a, threads) || !queries) return false;
#pragma omp parallel
    {
        uint8_t *rest = room + own * omp_get_thread_num();
        uint16_t *keys_across = cut_off(&rest, 2 * keys * width), *values = cut_off(&rest, 2 * keys * width);
        float *scores = cut_off(&rest, 4 * queries * keys), *sums = cut_off(&rest, 4 * queries * width);
        uint16_t *typed = cut_off(&rest, 2 * queries * keys);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, at = (b * seq * kv_heads + kv) * width;
            pack_across(k + at, kv_heads * width, seq, width, keys_across, keys);
            pack_along(v + at, kv_heads * width, seq, width, values, keys);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < seq; first += queries) {
                    const int64_t end = lesser(seq, first + queries), m = end - first, from = ((b * seq + first) * heads + head) * width;
                    const Span span = span_of(&a, first, end);
                    float total[QUERIES];
                    product(m, span.count, width, heads * width, keys, span.count, false, q + from, keys_across + 2 * span.low, scores,
                            true);
                    for (int64_t i = 0; i < m; i++) {
                        float *row = scores + i * span.count;
                        total[i] = spread(row, span.count, first_key(&a, span, first + i), first + i + 1 - span.low, scale);
                        for (int64_t j = 0; j < span.count; j++) typed[i * span.count + j] = to_bf16(row[j]);
                    }
                    product(m, width, span.count, span.count, width, width, false, typed, values + span.low * width, sums, true);
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < width; j++)
                            y[from + i * heads * width + j] = to_bf16(sums[i * width + j] / total[i]);
                }
        }
        release(true);
    }
    return true;
}

/* Sums (width, keys) to rows (seq, width). */
static void turn_back(const float *sums, int64_t keys, int64_t seq, int64_t width, uint16_t *rows, int64_t ld) {
    for (int64_t t = 0; t < seq; t++)
        for (int64_t j = 0; j < width; j++) rows[t * ld + j] = to_bf16(sums[j * keys + t]);
}

/* dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dp p)) scale; dq = ds k; dk = ds^T q, where p is computed again. As `attention`. */
bool attention_backward(const uint16_t *q, const uint16_t *k, const uint16_t *v, const uint16_t *dy, uint16_t *dq, uint16_t *dk,
                        uint16_t *dv, int64_t batch, int64_t seq, int64_t heads, int64_t kv_heads, int64_t width, int64_t window,
                        float scale, uint8_t *room, int64_t nbytes) {
    const Attention a = {batch, seq, heads, kv_heads, width, window, scale};
    const int64_t threads = omp_get_max_threads(), own = nbytes / threads / 64 * 64, keys = keys_of(&a), group = heads / kv_heads;
    const int64_t fixed = 3 * whole(2 * keys * width, 64) + 2 * whole(4 * keys * width, 64) + 8 * 64;
    const int64_t queries = block_of_queries(&a, own, fixed, 8 * keys + 6 * keys + 8 * width);
    if (!attends(&a, threads) || !queries) return false;
#pragma omp parallel
    {
        uint8_t *rest = room + own * omp_get_thread_num();
        uint16_t *keys_across = cut_off(&rest, 2 * keys * width), *values_across = cut_off(&rest, 2 * keys * width);
        uint16_t *keys_along = cut_off(&rest, 2 * keys * width);
        float *dk_sums = cut_off(&rest, 4 * keys * width), *dv_sums = cut_off(&rest, 4 * keys * width);
        float *p = cut_off(&rest, 4 * queries * keys), *dp = cut_off(&rest, 4 * queries * keys);
        uint16_t *ds = cut_off(&rest, 2 * queries * keys), *p_along = cut_off(&rest, 2 * queries * keys);
        uint16_t *ds_along = cut_off(&rest, 2 * queries * keys), *turned = cut_off(&rest, 4 * queries * width);
        float *sums = (float *)cut_off(&rest, 4 * queries * width);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < batch * kv_heads; item++) {
            const int64_t b = item / kv_heads, kv = item % kv_heads, at = (b * seq * kv_heads + kv) * width, ld = heads * width;
            pack_across(k + at, kv_heads * width, seq, width, keys_across, keys);
            pack_across(v + at, kv_heads * width, seq, width, values_across, keys);
            pack_along(k + at, kv_heads * width, seq, width, keys_along, keys);
            memset(dk_sums, 0, 4 * keys * width);
            memset(dv_sums, 0, 4 * keys * width);
            for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                for (int64_t first = 0; first < seq; first += queries) {
                    const int64_t end = lesser(seq, first + queries), m = end - first, even = whole(m, 2);
                    const int64_t from = ((b * seq + first) * heads + head) * width;
                    const Span span = span_of(&a, first, end);
                    const int64_t n = span.count;
                    product(m, n, width, ld, keys, n, false, q + from, keys_across + 2 * span.low, p, true);
                    product(m, n, width, ld, keys, n, false, dy + from, values_across + 2 * span.low, dp, true);
                    for (int64_t i = 0; i < m; i++) {
                        float *probability = p + i * n, *slope = dp + i * n, along = 0;
                        const float total = spread(probability, n, first_key(&a, span, first + i), first + i + 1 - span.low, scale);
                        for (int64_t j = 0; j < n; j++) probability[j] /= total;
#pragma omp simd reduction(+ : along)
                        for (int64_t j = 0; j < n; j++) along += probability[j] * slope[j];
                        for (int64_t j = 0; j < n; j++) ds[i * n + j] = to_bf16(probability[j] * (slope[j] - along) * scale);
                        for (int64_t j = 0; j < n; j++) p_along[i / 2 * 2 * n + 2 * j + i % 2] = to_bf16(probability[j]);
                    }
                    if (even > m) for (int64_t j = 0; j < n; j++) p_along[m / 2 * 2 * n + 2 * j + 1] = 0;
                    pack_along(ds, n, m, n, ds_along, even);
                    product(m, width, n, n, width, width, false, ds, keys_along + span.low * width, sums, true);
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < width; j++) dq[from + i * ld + j] = to_bf16(sums[i * width + j]);
                    turn(dy + from, ld, m, width, turned, even);
                    product(width, n, even, even, n, keys, true, turned, p_along, dv_sums + span.low, true);
                    turn(q + from, ld, m, width, turned, even);
                    product(width, n, even, even, n, keys, true, turned, ds_along, dk_sums + span.low, true);
                }
            turn_back(dk_sums, keys, seq, width, dk + at, kv_heads * width);
            turn_back(dv_sums, keys, seq, width, dv + at, kv_heads * width);
        }
        release(true);
    }
    return true;
}
