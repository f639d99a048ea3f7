/* SPDX-License-Identifier: 0BSD
 * bdcc_pack.h, one bit at a time, and bdcc_isa.h. */
#include "bdcc_pack.h"

#include "check.h"

static int bit_of(const uint8_t *plane, int32_t i) { return plane[i / 8] >> (i % 8) & 1; }

static uint8_t *random_codes(size_t n, int32_t bits) {
    uint8_t *codes = room(n, 1);
    for (size_t i = 0; i < n; i++) codes[i] = (uint8_t)random_below(1 << bits);
    return codes;
}

/* The code at (y, x) of the padded map, channel c of the group. */
static int code_at(const bdcc_window_t *w, const uint8_t *codes, int32_t y, int32_t x, int32_t c) {
    if (y < 0 || y >= w->in_h || x < 0 || x >= w->in_w) return w->zero;
    return codes[(y * w->in_w + x) * w->in_c + w->first_channel + c];
}

static void check_vector(int32_t count, int32_t bits) {
    const int32_t words = (count + 63) / 64;
    uint8_t *codes = random_codes((size_t)count, bits), *planes = room((size_t)(words * bits), 8);
    memset(planes, 0xff, (size_t)(words * bits) * 8);
    bdcc_pack_vector(codes, count, words, bits, planes);
    for (int32_t q = 0; q < bits; q++) {
        for (int32_t i = 0; i < words * 64; i++) {
            CHECK(bit_of(planes + q * words * 8, i) == (i < count ? codes[i] >> q & 1 : 0));
        }
    }
    free(codes);
    free(planes);
}

static void check_direct(const bdcc_window_t *w) {
    const int32_t deep = (w->channels + 7) / 8 * 8, height = w->pad_top + w->in_h + w->pad_bottom;
    const int32_t width = w->pad_left + w->in_w + w->pad_right;
    const ptrdiff_t plane = bdcc_direct_plane_bytes(w);
    CHECK(plane == height * width * deep / 8);
    uint8_t *codes = random_codes((size_t)(w->in_h * w->in_w * w->in_c), w->bits);
    uint8_t *planes = room((size_t)(plane * w->bits), 1);
    bdcc_pack_direct(w, codes, planes);
    for (int32_t q = 0; q < w->bits; q++) {
        for (int32_t i = 0; i < height * width * w->channels; i++) {
            const int32_t c = i % w->channels, pixel = i / w->channels;
            const int code = code_at(w, codes, pixel / width - w->pad_top, pixel % width - w->pad_left, c);
            CHECK(bit_of(planes + q * plane, pixel * deep + c) == (code >> q & 1));
        }
    }
    free(codes);
    free(planes);
}

static void check_gather(const bdcc_window_t *w, int32_t out_h, int32_t pixels) {
    const int32_t taps = w->kernel_h * w->kernel_w * w->channels, words = (taps + 63) / 64;
    uint8_t *codes = random_codes((size_t)(w->in_h * w->in_w * w->in_c), w->bits), *scratch = room((size_t)words, 64);
    uint8_t *planes = room((size_t)(words * pixels * w->bits), 8);
    for (int32_t row = 0; row < out_h; row++) {
        bdcc_gather_row(w, row, pixels, words, codes, scratch, planes);
        for (int32_t i = 0; i < w->bits * pixels * taps; i++) {
            const int32_t q = i / (pixels * taps), pixel = i / taps % pixels, tap = i % taps, c = tap % w->channels;
            const int32_t kh = tap / w->channels / w->kernel_w, kw = tap / w->channels % w->kernel_w;
            const int code = code_at(w, codes, row * w->stride_h - w->pad_top + kh * w->dilation_h,
                                     pixel * w->stride_w - w->pad_left + kw * w->dilation_w, c);
            CHECK(bit_of(planes + (q * pixels + pixel) * words * 8, tap) == (code >> q & 1));
        }
    }
    free(codes);
    free(scratch);
    free(planes);
}

int main(void) {
    for (int32_t bits = 1; bits <= 8; bits++) {
        const int32_t counts[] = { 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 130, 256, 363 };
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) check_vector(counts[i], bits);
    }
    for (int32_t isa = BDCC_ISA_GENERIC; isa < BDCC_ISA_COUNT; isa++) {
        CHECK(bdcc_isa_from_name(bdcc_isa_name(isa)) == isa);
        if (!bdcc_isa_usable(isa)) continue;
        const bdcc_window_t windows[] = {
            { 4, 5, 3, 0, 3, 1, 2, 3, 4, 2, 3, 1, 1, 1, 1, 3, 5, isa },
            { 3, 4, 64, 0, 64, 1, 1, 1, 1, 3, 3, 1, 1, 1, 1, 8, 255, isa },
            { 6, 7, 40, 24, 16, 0, 1, 0, 0, 2, 2, 2, 1, 1, 3, 2, 2, isa },
            { 9, 8, 13, 4, 9, 2, 0, 1, 3, 3, 1, 1, 2, 2, 1, 1, 0, isa },
            { 13, 14, 3, 0, 3, 0, 0, 0, 0, 11, 11, 1, 3, 1, 1, 5, 0, isa },
        };
        for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
            const bdcc_window_t *w = &windows[i];
            const int32_t tall = w->pad_top + w->in_h + w->pad_bottom - w->dilation_h * (w->kernel_h - 1) - 1;
            const int32_t wide = w->pad_left + w->in_w + w->pad_right - w->dilation_w * (w->kernel_w - 1) - 1;
            check_direct(w);
            check_gather(w, tall / w->stride_h + 1, wide / w->stride_w + 1);
        }
    }
    const uint8_t all[] = { BDCC_ISA_GENERIC, BDCC_ISA_POPCNT, BDCC_ISA_AVX2, BDCC_ISA_AVXVNNI, BDCC_ISA_AVX512,
                            BDCC_ISA_SIMD32, BDCC_ISA_NEON, BDCC_ISA_NEONDOT };
    for (int count = 1; count <= BDCC_ISA_COUNT; count++) CHECK(bdcc_isa_usable(bdcc_isa_detect(all, count)));
    CHECK(bdcc_isa_detect(all, 1) == BDCC_ISA_GENERIC && sizeof all == BDCC_ISA_COUNT);
    CHECK(!bdcc_isa_usable(-1) && !bdcc_isa_usable(BDCC_ISA_COUNT));
    CHECK(bdcc_isa_from_name("avx1024") == -1 && bdcc_isa_from_name("") == -1 && bdcc_isa_from_name(NULL) == -1);
    return report("pack");
}
