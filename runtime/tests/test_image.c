/* SPDX-License-Identifier: 0BSD
 * bdcc_image.h: layouts by index, resize against the unrounded formula, classes against sorting. */
#include "bdcc_image.h"

#include "check.h"

static void test_layouts(void) {
    enum { C = 3, H = 4, W = 5, N = C * H * W };
    float *nchw = floats(N, hard_float), *nhwc = room(N, sizeof(float)), *back = room(N, sizeof(float));
    bdcc_input_float(nchw, C, H, W, nhwc);
    for (int c = 0; c < C; ++c) {
        for (int p = 0; p < H * W; ++p) check_floats("input", nhwc + p * C + c, nchw + c * H * W + p, 1);
    }
    bdcc_output_float(nhwc, C, H, W, back);
    check_floats("output", back, nchw, N);
    free(nchw);
    free(nhwc);
    free(back);
}

static void test_pixels(void) {
    enum { C = 3, H = 3, W = 5, ROW = 3 * W + 4 };
    const uint8_t order[C] = { 2, 1, 0 };
    float *table = floats(C * 256, random_float), *got = room(C * H * W, sizeof(float));
    const size_t bytes = (H - 1) * ROW + C * W; /* the last row ends with its pixels */
    uint8_t *pixels = room(bytes, 1);
    for (size_t i = 0; i < bytes; ++i) pixels[i] = (uint8_t)random_u32();
    bdcc_input_u8(pixels, ROW, C, H, W, table, order, got);
    for (int y = 0; y < H; ++y) {
        for (int x = 0; x < W; ++x) {
            for (int c = 0; c < C; ++c) {
                check_floats("pixel", got + (y * W + x) * C + c, table + c * 256 + pixels[y * ROW + x * C + 2 - c], 1);
            }
        }
    }
    free(table);
    free(got);
    free(pixels);
}

/* Antialiased bilinear along one axis in float64: the value at output i of `full` of n values `step` apart. */
static double sample(const uint8_t *values, int32_t n, size_t step, int32_t full, int32_t i) {
    const double scale = (double)n / full, support = fmax(scale, 1.0), centre = (i + 0.5) * scale;
    double sum = 0.0, total = 0.0;
    for (int32_t j = 0; j < n; ++j) {
        const double weight = fmax(0.0, 1.0 - fabs(j + 0.5 - centre) / support);
        sum += weight * values[(size_t)j * step];
        total += weight;
    }
    return sum / total;
}

static void check_resize(bdcc_resize_t r) {
    const size_t channels = (size_t)r.channels, row = (size_t)r.in_w * channels + 5, wide = (size_t)r.out_w * channels;
    const size_t bytes = (size_t)(r.in_h - 1) * row + (size_t)r.in_w * channels, need = bdcc_resize_scratch_bytes(&r);
    uint8_t *pixels = room(bytes, 1), *out = room((size_t)r.out_h * wide, 1), *across = room((size_t)r.in_h * wide, 1);
    void *scratch = room(need, 1);
    for (size_t i = 0; i < bytes; ++i)
        pixels[i] = random_u32() % 3 ? (uint8_t)random_u32() : (uint8_t)(random_u32() % 2 * 255);
    CHECK(need > 0 && bdcc_resize(&r, pixels, row, out, scratch, need) == 0);
    CHECK(bdcc_resize(&r, pixels, row, out, scratch, need - 1) == -1);
    for (size_t y = 0; y < (size_t)r.in_h; ++y) {
        for (size_t i = 0; i < wide; ++i) {
            const uint8_t *line = pixels + y * row + i % channels;
            across[y * wide + i] =
                (uint8_t)floor(sample(line, r.in_w, channels, r.full_w, r.left + (int32_t)(i / channels)) + 0.5);
        }
    }
    for (int32_t y = 0; y < r.out_h; ++y) {
        for (size_t i = 0; i < wide; ++i) {
            const double want = sample(across + i, r.in_h, wide, r.full_h, r.top + y);
            CHECK(fabs(out[(size_t)y * wide + i] - want) <= 1.0);
        }
    }
    free(pixels);
    free(out);
    free(across);
    free(scratch);
}

static void test_resize(void) {
    check_resize(bdcc_resize_stretch(1, 1, 1, 1, 1));
    check_resize(bdcc_resize_stretch(1, 1, 3, 7, 5));
    check_resize(bdcc_resize_stretch(64, 48, 3, 17, 31));
    check_resize(bdcc_resize_stretch(17, 31, 3, 64, 48));
    check_resize(bdcc_resize_stretch(33, 7, 1, 8, 20));
    check_resize(bdcc_resize_stretch(200, 3, 4, 1, 1));
    check_resize(bdcc_resize_crop(50, 31, 3, 16, 16, 20));
    check_resize(bdcc_resize_crop(31, 50, 3, 24, 20, 24));
    check_resize(bdcc_resize_crop(9, 12, 1, 32, 32, 33));

    uint8_t pixels[5 * 4 * 3], out[5 * 4 * 3]; /* the same size is a copy */
    const bdcc_resize_t same = bdcc_resize_stretch(5, 4, 3, 5, 4);
    for (size_t i = 0; i < sizeof pixels; ++i) pixels[i] = (uint8_t)random_u32();
    void *scratch = room(bdcc_resize_scratch_bytes(&same), 1);
    CHECK(bdcc_resize(&same, pixels, 15, out, scratch, bdcc_resize_scratch_bytes(&same)) == 0);
    check_bytes("resize to the same size", out, pixels, sizeof pixels);
    free(scratch);

    const bdcc_resize_t crop = bdcc_resize_crop(640, 480, 3, 224, 224, 256);
    CHECK(crop.full_w == 341 && crop.full_h == 256 && crop.left == 58 && crop.top == 16);
    uint32_t words[8];
    const bdcc_resize_t impossible[] = {
        bdcc_resize_stretch(0, 4, 3, 2, 2),         bdcc_resize_stretch(4, 4, 5, 2, 2),
        bdcc_resize_stretch(4, 4, 3, 2, -1),        bdcc_resize_stretch(4, 4, 3, INT32_MAX, 1),
        bdcc_resize_crop(4, 4, 3, 8, 8, 7),         bdcc_resize_crop(0, 4, 3, 8, 8, 8),
        bdcc_resize_crop(1, INT32_MAX, 3, 8, 8, 8),
    };
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; ++i) {
        CHECK(bdcc_resize_scratch_bytes(&impossible[i]) == 0);
        CHECK(bdcc_resize(&impossible[i], pixels, 15, out, words, sizeof words) == -1);
    }
}

static void test_top_k(void) {
    const float v[] = { NAN, 2.0f, -0.0f, 5.0f, INFINITY, 5.0f, 0.0f, -INFINITY, NAN };
    const int32_t want[] = { 4, 3, 5, 1, 2, 6, 7, 0, 8 };
    for (int32_t k = -1; k < 12; ++k) {
        int32_t index[12];
        for (int32_t i = 0; i < 12; ++i) index[i] = -7;
        bdcc_top_k(v, 9, k, index);
        for (int32_t i = 0; i < 12; ++i) CHECK(index[i] == (i < k && i < 9 ? want[i] : -7));
    }
}

int main(void) {
    test_layouts();
    test_pixels();
    test_resize();
    test_top_k();
    return report("image");
}
