/* The head's running softmax. */

/* Capped logits [0, count) of a row become e^(logit - top) times d logit / d (what was capped), or go to `typed` in bf16 where it is
   not null; returns the sum of e^(logit - top). */
static float capped_exponentials(float *restrict values, uint16_t *restrict typed, int64_t count, float top, float cap) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) {
        const float e = exp_down(values[j] - top), t = values[j] / cap;
        sum += e;
        values[j] = e * (1.0f - t * t);
    }
    if (typed)
        for (int64_t j = 0; j < count; j++) typed[j] = to_bf16(values[j]);
    return sum;
}

/* Take logits (tokens, count) of the vocabulary from `low` on, times `scale`, and then as cap tanh(logit / cap) where cap is not 0,
   into the running maximum `highest`, the sum `total` of e^(logit - highest), the label's logit `picked`, and rescale `weighted`
   (tokens, cols; may be null). The exponentials, times the cap's slope, take the logits' place, or go to `typed` (tokens, count) in
   bf16 where that is not null. A maximum that is not finite is left to spoil the sums. */
void softmax_tile(float *logits, int64_t tokens, int64_t count, int64_t low, const int64_t *labels, float *highest, float *total,
                  float *picked, float *weighted, int64_t cols, uint16_t *typed, float scale, float cap) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < tokens; i++) {
        float *row = logits + i * count;
        uint16_t *exps = typed ? typed + i * count : 0;
        if (cap > 0)
            for (int64_t j = 0; j < count; j++) row[j] = cap * tanh_of(scale * row[j] / cap);
        else if (scale != 1.0f)
            for (int64_t j = 0; j < count; j++) row[j] *= scale;
        if (labels[i] >= low && labels[i] < low + count) picked[i] = row[labels[i] - low];
        const float top = largest(row, count, highest[i]), shrink = highest[i] < top ? exp_down(highest[i] - top) : 1.0f;
        highest[i] = top;
        total[i] *= shrink;
        total[i] += cap > 0 ? capped_exponentials(row, exps, count, top, cap) : exponentials(row, exps, count, top);
        if (weighted && shrink != 1.0f)
            for (int64_t j = 0; j < cols; j++) weighted[i * cols + j] *= shrink;
    }
}
