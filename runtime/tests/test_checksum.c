/* SPDX-License-Identifier: 0BSD
 * bdcc_checksum.h: built byte by byte it is the same, and any damage shows. */
#include "bdcc_checksum.h"

#include "check.h"

static uint64_t checksum_ref(const uint8_t *data, size_t bytes) {
    uint64_t sum = 0;
    for (size_t word = 0; word * 8 < bytes; ++word) {
        uint64_t value = 0;
        for (size_t i = 0; i < 8 && word * 8 + i < bytes; ++i) value |= (uint64_t)data[word * 8 + i] << (8 * i);
        sum += bdcc_checksum_mix(value + (uint64_t)(word + 1) * BDCC_CHECKSUM_STEP);
    }
    return bdcc_checksum_mix(sum + bytes);
}

int main(void) {
    for (size_t bytes = 0; bytes < 100; ++bytes) {
        uint8_t *data = room(bytes, 1);
        for (size_t i = 0; i < bytes; ++i) data[i] = (uint8_t)random_u32();
        const uint64_t sum = bdcc_checksum(data, bytes);
        CHECK(sum == checksum_ref(data, bytes));
        for (size_t bit = 0; bit < 8 * bytes; ++bit) {
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK(bdcc_checksum(data, bytes) != sum);
            for (size_t other = bit % 64; other < bit; other += 64) { /* the same bit of two words: signs, for one */
                data[other / 8] ^= (uint8_t)(1u << other % 8);
                CHECK(bdcc_checksum(data, bytes) != sum);
                data[other / 8] ^= (uint8_t)(1u << other % 8);
            }
            data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        free(data);
    }
    uint8_t words[16], swapped[16], zeros[17] = { 0 };
    for (size_t i = 0; i < 16; ++i) words[i] = swapped[(i + 8) % 16] = (uint8_t)(i + 1);
    CHECK(bdcc_checksum(words, 16) != bdcc_checksum(swapped, 16));
    CHECK(bdcc_checksum(zeros, 16) != bdcc_checksum(zeros, 17));
    return report("checksum");
}
