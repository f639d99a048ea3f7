/* SPDX-License-Identifier: 0BSD
 * What several layers leave side by side: a tensor that its layer could not write there is copied into its slice. */
#ifndef BDCC_CONCAT_H
#define BDCC_CONCAT_H

#include "bdcc_base.h"

/* x: `runs` runs of `run_bytes` bytes, one behind the other; y: the same, `pitch_bytes` apart. */
BDCC_INLINE void bdcc_concat_slice(const unsigned char *BDCC_RESTRICT x, size_t runs, size_t run_bytes,
                                   unsigned char *BDCC_RESTRICT y, size_t pitch_bytes) {
    for (size_t i = 0; i < runs; ++i) memcpy(y + i * pitch_bytes, x + i * run_bytes, run_bytes);
}

#endif
