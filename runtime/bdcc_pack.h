/* SPDX-License-Identifier: 0BSD
 * From codes to bit planes, in the order that the popcount kernels read:
 *
 *   run:    byte 0            byte 1           ...      word w = bytes 8w .. 8w+7, little-endian
 *   bits:   7 6 5 4 3 2 1 0   15 ... 8                  bit i of the run = bit (i mod 64) of word i/64
 *
 * Plane q holds bit q of every code. */
#ifndef BDCC_PACK_H
#define BDCC_PACK_H

#include "bdcc_isa.h"
#include "bdcc_numeric.h"

#if BDCC_X86
#include <immintrin.h>
#elif BDCC_NEON
#include <arm_neon.h>
#endif

/* One GEMM call: neighbouring output pixels of one output row, all filters of one group. */
typedef struct {
    int32_t pixels;                                   /* output pixels */
    int32_t blocks;                                   /* filter blocks of 8 */
    int32_t rows;                                     /* runs per pixel: kernel height (direct) or 1 (gathered) */
    int32_t words;                                    /* 64-bit words per run */
    ptrdiff_t pixel_stride, row_stride, plane_stride; /* bytes */
} bdcc_gemm_t;

/* How a convolution sees one group of a feature map of codes, [in_h][in_w][in_c]. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t first_channel, channels; /* of the group */
    int32_t pad_top, pad_left, pad_bottom, pad_right;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w; /* read by bdcc_gather_run only */
    int32_t bits;                                                           /* planes */
    int32_t zero;                                                           /* code of the padding */
    int32_t isa; /* BDCC_ISA_AVX512 packs faster, any other alike; never changes a bit */
} bdcc_window_t;

#if BDCC_X86
/* 64 codes to one word of each of `bits` planes, `words` times. */
BDCC_TARGET_AVX512 BDCC_UNUSED static void bdcc_pack_words__avx512(const uint8_t *codes, size_t words, int32_t bits,
                                                                   uint8_t *planes, ptrdiff_t plane_stride) {
    for (size_t i = 0; i < words; i++) {
        const __m512i v = _mm512_loadu_si512(codes + 64 * i);
        __m512i bit = _mm512_set1_epi8(1);
        for (int32_t q = 0; q < bits; q++, bit = _mm512_add_epi8(bit, bit)) {
            const uint64_t mask = _mm512_test_epi8_mask(v, bit);
            memcpy(planes + q * plane_stride + 8 * (ptrdiff_t)i, &mask, sizeof mask);
        }
    }
}
#endif

#if BDCC_NEON
/* 128 codes to 16 bytes of each of `bits` planes: a register has every eighth code, and each plane's bits are shifted
 * into each other from all eight. */
BDCC_UNUSED static void bdcc_pack_128__neon(const uint8_t *codes, int32_t bits, uint8_t *planes, ptrdiff_t plane_stride) {
    const uint8x16x4_t low = vld4q_u8(codes), high = vld4q_u8(codes + 64);
    const uint8x16x2_t c04 = vuzpq_u8(low.val[0], high.val[0]), c15 = vuzpq_u8(low.val[1], high.val[1]);
    const uint8x16x2_t c26 = vuzpq_u8(low.val[2], high.val[2]), c37 = vuzpq_u8(low.val[3], high.val[3]);
    const int8x16_t up = vdupq_n_s8((int8_t)(8 - bits)); /* the top plane to the top of each byte, then the next */
    uint8x16_t c0 = vshlq_u8(c04.val[0], up), c1 = vshlq_u8(c15.val[0], up), c2 = vshlq_u8(c26.val[0], up);
    uint8x16_t c3 = vshlq_u8(c37.val[0], up), c4 = vshlq_u8(c04.val[1], up), c5 = vshlq_u8(c15.val[1], up);
    uint8x16_t c6 = vshlq_u8(c26.val[1], up), c7 = vshlq_u8(c37.val[1], up);
    for (int32_t q = bits - 1; q >= 0; q--) {
        const uint8x16_t top = vsriq_n_u8(vsriq_n_u8(c7, c6, 1), vsriq_n_u8(c5, c4, 1), 2);
        const uint8x16_t bottom = vsriq_n_u8(vsriq_n_u8(c3, c2, 1), vsriq_n_u8(c1, c0, 1), 2);
        vst1q_u8(planes + q * plane_stride, vsriq_n_u8(top, bottom, 4));
        c0 = vaddq_u8(c0, c0), c1 = vaddq_u8(c1, c1), c2 = vaddq_u8(c2, c2), c3 = vaddq_u8(c3, c3);
        c4 = vaddq_u8(c4, c4), c5 = vaddq_u8(c5, c5), c6 = vaddq_u8(c6, c6), c7 = vaddq_u8(c7, c7);
    }
}
#endif

/* Bit q of eight codes. Byte j's bit lands at 56 + j of the product, without carries; where that would be two registers,
 * at 24 + j of each half's. */
BDCC_INLINE uint8_t bdcc_pack_8(uint64_t v, int32_t q) {
#if UINTPTR_MAX > UINT32_MAX
    return (uint8_t)((((v >> q) & UINT64_C(0x0101010101010101)) * UINT64_C(0x0102040810204080)) >> 56);
#else
    const uint32_t low = (uint32_t)v >> q & 0x01010101u, high = (uint32_t)(v >> 32) >> q & 0x01010101u;
    return (uint8_t)((low * 0x01020408u) >> 24 | (high * 0x01020408u) >> 24 << 4);
#endif
}

/* `count` codes (any number) to (count + 7) / 8 bytes of each of `bits` planes; bits past the last code are 0. */
BDCC_INLINE void bdcc_pack_run(const uint8_t *BDCC_RESTRICT codes, size_t count, int32_t bits, int32_t isa,
                               uint8_t *BDCC_RESTRICT planes, ptrdiff_t plane_stride) {
    size_t i = 0;
    (void)isa;
#if BDCC_X86
    if (isa == BDCC_ISA_AVX512) {
        bdcc_pack_words__avx512(codes, count / 64, bits, planes, plane_stride);
        i = count / 64 * 64;
    }
    const __m128i up = _mm_cvtsi32_si128(8 - bits); /* the top plane to the top of each byte, then the next */
    for (; i + 32 <= count; i += 32) {
        __m128i a = _mm_sll_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + i)), up);
        __m128i b = _mm_sll_epi16(_mm_loadu_si128((const __m128i *)(const void *)(codes + i + 16)), up);
        for (int32_t q = bits - 1; q >= 0; q--, a = _mm_add_epi8(a, a), b = _mm_add_epi8(b, b)) {
            const uint32_t mask = (uint32_t)_mm_movemask_epi8(a) | (uint32_t)_mm_movemask_epi8(b) << 16;
            memcpy(planes + q * plane_stride + (ptrdiff_t)(i / 8), &mask, sizeof mask);
        }
    }
#elif BDCC_NEON
    for (; i + 128 <= count; i += 128) bdcc_pack_128__neon(codes + i, bits, planes + i / 8, plane_stride);
#endif
    for (; i < count; i += 8) {
        uint64_t v = 0;
        if (count - i >= 8) {
            v = bdcc_load64(codes + i);
        } else {
            memcpy(&v, codes + i, count - i);
        }
        for (int32_t q = 0; q < bits; q++) planes[q * plane_stride + (ptrdiff_t)(i / 8)] = bdcc_pack_8(v, q);
    }
}

BDCC_INLINE ptrdiff_t bdcc_direct_pixel_bytes(const bdcc_window_t *w) { return (w->channels + 7) / 8; }

BDCC_INLINE ptrdiff_t bdcc_direct_row_bytes(const bdcc_window_t *w) {
    return (w->pad_left + w->in_w + w->pad_right) * bdcc_direct_pixel_bytes(w);
}

BDCC_INLINE ptrdiff_t bdcc_direct_plane_bytes(const bdcc_window_t *w) {
    return (w->pad_top + w->in_h + w->pad_bottom) * bdcc_direct_row_bytes(w);
}

/* planes: [bits][pad_top + in_h + pad_bottom][pad_left + in_w + pad_right][(channels + 7) / 8 bytes], padding of code
 * `zero`. */
BDCC_INLINE void bdcc_pack_direct(const bdcc_window_t *w, const uint8_t *BDCC_RESTRICT codes,
                                  uint8_t *BDCC_RESTRICT planes) {
    const ptrdiff_t pixel = bdcc_direct_pixel_bytes(w), row = bdcc_direct_row_bytes(w);
    const ptrdiff_t plane = bdcc_direct_plane_bytes(w);
    for (int32_t q = 0; q < w->bits; q++) {
        const int fill = (w->zero >> q) & 1 ? 0xff : 0;
        uint8_t *p = planes + q * plane;
        memset(p, fill, (size_t)(w->pad_top * row));
        memset(p + (w->pad_top + w->in_h) * row, fill, (size_t)(w->pad_bottom * row));
        for (int32_t y = 0; y < w->in_h; y++) {
            uint8_t *line = p + (w->pad_top + y) * row;
            memset(line, fill, (size_t)(w->pad_left * pixel));
            memset(line + (w->pad_left + w->in_w) * pixel, fill, (size_t)(w->pad_right * pixel));
        }
    }
    const int whole = w->channels == w->in_c && w->channels % 8 == 0; /* then a row of pixels is one run */
    const int32_t runs = whole ? 1 : w->in_w;
    const size_t count = (size_t)w->channels * (size_t)(whole ? w->in_w : 1);
    for (int32_t y = 0; y < w->in_h; y++) {
        for (int32_t x = 0; x < runs; x++) {
            const uint8_t *from = codes + ((ptrdiff_t)y * w->in_w + x) * w->in_c + w->first_channel;
            uint8_t *to = planes + (w->pad_top + y) * row + (w->pad_left + x) * pixel;
            bdcc_pack_run(from, count, w->bits, w->isa, to, plane);
        }
    }
}

/* memcpy for a few dozen bytes, where calling it costs more than copying. */
BDCC_INLINE void bdcc_copy_short(uint8_t *BDCC_RESTRICT to, const uint8_t *BDCC_RESTRICT from, size_t count) {
    if (count >= 32) {
        for (size_t i = 0; i + 32 <= count; i += 32) memcpy(to + i, from + i, 32);
        memcpy(to + count - 32, from + count - 32, 32); /* the rest, and some bytes again */
    } else if (count >= 16) {
        memcpy(to, from, 16);
        memcpy(to + count - 16, from + count - 16, 16);
    } else if (count >= 8) {
        memcpy(to, from, 8);
        memcpy(to + count - 8, from + count - 8, 8);
    } else {
        for (size_t i = 0; i < count; i++) {
            BDCC_SCALAR; /* nor a call of memmove */
            to[i] = from[i];
        }
    }
}

/* The kernel_w * channels codes that output column out_x sees of kernel row i of output row out_y. */
BDCC_INLINE void bdcc_gather_run(const bdcc_window_t *w, int32_t out_y, int32_t i, int32_t out_x,
                                 const uint8_t *BDCC_RESTRICT codes, uint8_t *BDCC_RESTRICT to) {
    const size_t channels = (size_t)w->channels, taps = channels * (size_t)w->kernel_w;
    const int whole = w->dilation_w == 1 && w->channels == w->in_c; /* then the taps of a kernel row are one run */
    const int32_t y = out_y * w->stride_h - w->pad_top + i * w->dilation_h;
    const int32_t left = out_x * w->stride_w - w->pad_left;
    if (y < 0 || y >= w->in_h) {
        memset(to, w->zero, taps);
        return;
    }
    const uint8_t *row = codes + (ptrdiff_t)y * w->in_w * w->in_c + w->first_channel;
    if (whole && left >= 0 && left + w->kernel_w <= w->in_w) {
        bdcc_copy_short(to, row + (ptrdiff_t)left * w->in_c, taps);
        return;
    }
    for (int32_t j = 0; j < w->kernel_w; j++) {
        const int32_t x = left + j * w->dilation_w;
        if (x >= 0 && x < w->in_w) {
            bdcc_copy_short(to + (size_t)j * channels, row + (ptrdiff_t)x * w->in_c, channels);
        } else {
            memset(to + (size_t)j * channels, w->zero, channels);
        }
    }
}

/* The codes of `pixels` output pixels of output row `out_y`, each kernel_h * kernel_w * channels of them:
 * planes: [bits][pixels][words * 8 bytes]; scratch: words * 64 bytes. */
BDCC_INLINE void bdcc_gather_row(const bdcc_window_t *w, int32_t out_y, int32_t pixels, int32_t words,
                                 const uint8_t *BDCC_RESTRICT codes, uint8_t *BDCC_RESTRICT scratch,
                                 uint8_t *BDCC_RESTRICT planes) {
    const size_t count = (size_t)words * 64;
    memset(scratch, 0, count);
    for (int32_t pixel = 0; pixel < pixels; pixel++) {
        for (int32_t i = 0; i < w->kernel_h; i++) {
            bdcc_gather_run(w, out_y, i, pixel, codes, scratch + i * w->kernel_w * w->channels);
        }
        bdcc_pack_run(scratch, count, w->bits, w->isa, planes + (ptrdiff_t)pixel * words * 8,
                      (ptrdiff_t)pixels * words * 8);
    }
}

/* A dense layer's `count` codes; planes: [bits][words * 8 bytes] with words = (count + 63) / 64. */
BDCC_INLINE void bdcc_pack_vector(const uint8_t *BDCC_RESTRICT codes, int32_t count, int32_t words, int32_t bits,
                                  uint8_t *BDCC_RESTRICT planes) {
    const size_t filled = ((size_t)count + 7) / 8;
    for (int32_t q = 0; q < bits; q++) {
        memset(planes + (ptrdiff_t)q * words * 8 + filled, 0, (size_t)words * 8 - filled);
    }
    bdcc_pack_run(codes, (size_t)count, bits, BDCC_ISA_GENERIC, planes, (ptrdiff_t)words * 8);
}

/* Words first .. first + count - 1 of one pixel, all planes of a word side by side, each of them `copies` times:
 * to[i * step + q * copies]. */
BDCC_INLINE void bdcc_take_words(const bdcc_gemm_t *g, const uint8_t *BDCC_RESTRICT pixel, int32_t first, int32_t count,
                                 int32_t bits, int32_t copies, ptrdiff_t step, uint64_t *BDCC_RESTRICT to) {
    const uint8_t *run = pixel + (first / g->words) * g->row_stride;
    int32_t word = first % g->words;
    for (int32_t i = 0; i < count; i++, to += step) {
        for (int32_t q = 0; q < bits; q++) {
            const uint64_t v = bdcc_load64(run + q * g->plane_stride + (ptrdiff_t)word * 8);
            for (int32_t copy = 0; copy < copies; copy++) to[q * copies + copy] = v;
        }
        if (++word == g->words) {
            word = 0;
            run += g->row_stride;
        }
    }
}

#endif
