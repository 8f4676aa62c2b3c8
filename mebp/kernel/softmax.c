/* The head's running softmax. */

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
