/* SPDX-License-Identifier: 0BSD
 * A 64-bit checksum that guards weights against damage (not against intent). Each little-endian word is mixed with its
 * position, one to one, and the results are added up: a change within one word always shows, changes in several
 * practically always, and the words can be summed in any order. compiler/bdcc/codegen/checksum.py computes the same. */
#ifndef BDCC_CHECKSUM_H
#define BDCC_CHECKSUM_H

#include "bdcc_base.h"

#define BDCC_CHECKSUM_STEP UINT64_C(0x9E3779B97F4A7C15)   /* 2^64 / golden ratio */
#define BDCC_CHECKSUM_FIRST UINT64_C(0x243F6A8885A308D3)  /* the digits of pi */
#define BDCC_CHECKSUM_SECOND UINT64_C(0xB7E151628AED2A6B) /* the digits of e */

/* Invertible, so two words never collide; the shifts carry high bits down to where the products spread them. */
BDCC_INLINE uint64_t bdcc_checksum_mix(uint64_t v) {
    v = (v ^ (v >> 32)) * BDCC_CHECKSUM_FIRST;
    v = (v ^ (v >> 29)) * BDCC_CHECKSUM_SECOND;
    return v ^ (v >> 32);
}

/* The last word is filled up with zeros; the length is mixed in at the end. */
BDCC_INLINE uint64_t bdcc_checksum(const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    uint64_t sum = 0, step = 0;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        step += BDCC_CHECKSUM_STEP;
        sum += bdcc_checksum_mix(bdcc_load64(p + i) + step);
    }
    if (i < bytes) {
        uint64_t tail = 0;
        memcpy(&tail, p + i, bytes - i);
        sum += bdcc_checksum_mix(tail + step + BDCC_CHECKSUM_STEP);
    }
    return bdcc_checksum_mix(sum + (uint64_t)bytes);
}

#endif
