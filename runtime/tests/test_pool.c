/* SPDX-License-Identifier: 0BSD
 * bdcc_pool.h against pools that look at every position of every window. */
#include "bdcc_pool.h"

#include "bdcc_quantize.h"
#include "check.h"

/* One output value; x of one channel is reached through `channels` and c. */
static float pool_ref(const bdcc_pool_t *g, const float *x, int32_t oy, int32_t ox, int32_t c, int average) {
    float result = average ? 0.0f : -INFINITY;
    int32_t count = 0, found = 0;
    for (int32_t kh = 0; kh < g->kernel_h; ++kh) {
        for (int32_t kw = 0; kw < g->kernel_w; ++kw) {
            const int32_t iy = oy * g->stride_h - g->pad_top + kh * g->dilation_h;
            const int32_t ix = ox * g->stride_w - g->pad_left + kw * g->dilation_w;
            const int valid = iy >= 0 && iy < g->in_h && ix >= 0 && ix < g->in_w;
            if (valid || (g->count_include_pad && iy < g->in_h + g->pad_bottom && ix < g->in_w + g->pad_right)) ++count;
            if (!valid) continue;
            const float v = x[(iy * g->in_w + ix) * g->channels + c];
            if (average) {
                result = result + v;
            } else if (!found || v > result || isnan(v)) {
                result = v;
            }
            found = 1;
        }
    }
    return plain_canonical(average ? result / (float)count : result);
}

static void check_pools(const bdcc_pool_t *g, int32_t pitch) {
    const size_t channels = (size_t)g->channels, pixels = (size_t)(g->out_h * g->out_w);
    const size_t inputs = (size_t)(g->in_h * g->in_w) * channels, outputs = pixels * channels;
    const size_t n = (pixels - 1) * (size_t)pitch + channels;
    const bdcc_quant_t q = { 1.5f, 3, 15 };
    float *x = floats(inputs, hard_float), *got = floats(n, random_float), *want = room(n, sizeof(float)),
          *plain = room(outputs, sizeof(float)), *finite = room(outputs, sizeof(float));
    uint8_t *codes = room(inputs, 1), *got_codes = room(n, 1), *want_codes = room(n, 1),
            *plain_codes = room(outputs, 1);
    for (int average = 0; average < 2; ++average) {
        size_t i = 0;
        for (int32_t oy = 0; oy < g->out_h; ++oy) {
            for (int32_t ox = 0; ox < g->out_w; ++ox) {
                for (int32_t c = 0; c < g->channels; ++c) plain[i++] = pool_ref(g, x, oy, ox, c, average);
            }
        }
        memcpy(want, got, n * sizeof(float));
        lay(want, plain, pixels, channels * sizeof(float), (size_t)pitch * sizeof(float));
        if (average) {
            bdcc_average_pool(g, x, got, pitch);
        } else {
            bdcc_max_pool_float(g, x, 0, got, pitch);
        }
        check_floats(average ? "average pool" : "max pool", got, want, n);
    }
    for (size_t i = 0; i < inputs; ++i) { /* pooled codes are the codes of pooled numbers */
        x[i] = isnan(x[i]) ? 0.0f : x[i];
        codes[i] = bdcc_quantize1(x[i], q);
    }
    bdcc_max_pool_float(g, x, 0, plain, g->channels);
    bdcc_max_pool_float(g, x, 1, finite, g->channels);
    check_floats("max pool without NaN", finite, plain, outputs);
    bdcc_quantize(plain, outputs, q, plain_codes);
    for (size_t i = 0; i < n; ++i) got_codes[i] = want_codes[i] = (uint8_t)random_below(256);
    lay(want_codes, plain_codes, pixels, channels, (size_t)pitch);
    bdcc_max_pool_codes(g, codes, got_codes, pitch);
    check_bytes("max pool of codes", got_codes, want_codes, n);
    free(x);
    free(got);
    free(want);
    free(plain);
    free(finite);
    free(codes);
    free(got_codes);
    free(want_codes);
    free(plain_codes);
}

static void test_pools(void) {
    /* in, channels, out, kernel, stride, pads at the beginning, dilation, pads at the end, count_include_pad */
    static const bdcc_pool_t geometries[] = {
        { 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0 },
        { 13, 13, 35, 6, 6, 3, 3, 2, 2, 0, 0, 1, 1, 0, 0, 0 },
        { 7, 5, 16, 4, 3, 3, 2, 2, 2, 1, 0, 1, 1, 1, 1, 0 },
        { 7, 5, 3, 4, 3, 3, 2, 2, 2, 1, 0, 1, 1, 1, 1, 1 },
        { 6, 6, 17, 3, 3, 3, 3, 2, 2, 0, 0, 1, 1, 0, 0, 0 }, /* ceil_mode: the last window is cut off */
        { 6, 6, 17, 3, 3, 3, 3, 2, 2, 0, 0, 1, 1, 0, 0, 1 },
        { 6, 6, 5, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1 }, /* ceil_mode beyond the padding: not counted */
        { 9, 8, 4, 5, 4, 3, 3, 1, 1, 0, 0, 2, 2, 0, 0, 0 },
        { 5, 5, 2, 5, 5, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 1 },
        { 2, 2, 3, 3, 3, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 0 }, /* windows with no valid position */
        { 3, 9, 1, 1, 4, 3, 2, 3, 2, 0, 0, 1, 1, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof geometries / sizeof geometries[0]; ++i) {
        for (int32_t gap = 0; gap < 15; gap += 3) check_pools(&geometries[i], geometries[i].channels + gap);
    }
}

static void test_global_average(void) {
    for (int32_t channels = 1; channels < 40; ++channels) {
        const int32_t pixels = 1 + random_below(30);
        float *x = floats((size_t)(pixels * channels), hard_float), *got = floats((size_t)channels, random_float);
        float *want = room((size_t)channels, sizeof(float));
        for (int32_t c = 0; c < channels; ++c) {
            for (int32_t p = 0; p < pixels; ++p) want[c] = want[c] + x[p * channels + c];
            want[c] = plain_canonical(want[c] / (float)pixels);
        }
        bdcc_global_average_pool(x, pixels, channels, got);
        check_floats("global average pool", got, want, (size_t)channels);
        free(x);
        free(got);
        free(want);
    }
}

int main(void) {
    test_pools();
    test_global_average();
    return report("pool");
}
