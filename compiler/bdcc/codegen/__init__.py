# SPDX-License-Identifier: 0BSD
"""What C do we write? Plan, memory, packing, emission."""
