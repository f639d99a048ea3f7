/* SPDX-License-Identifier: 0BSD
 * Softmax over the channels of each pixel, with the exponential of bdcc_numeric.h. */
#ifndef BDCC_SOFTMAX_H
#define BDCC_SOFTMAX_H

#include "bdcc_numeric.h"

/* x, y float32 [pixels][channels], not the same. */
BDCC_INLINE void bdcc_softmax(const float *BDCC_RESTRICT x, int32_t pixels, int32_t channels, float *BDCC_RESTRICT y) {
    for (int32_t p = 0; p < pixels; ++p, x += channels, y += channels) {
        float largest = x[0], sum = 0.0f;
        for (int32_t c = 1; c < channels; ++c) largest = x[c] > largest || x[c] != x[c] ? x[c] : largest;
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) y[c] = bdcc_exp(x[c] - largest);
        for (int32_t c = 0; c < channels; ++c) sum = sum + y[c];
        BDCC_INDEPENDENT
        for (int32_t c = 0; c < channels; ++c) y[c] = bdcc_canonical(y[c] / sum);
    }
}

#endif
