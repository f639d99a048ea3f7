# SPDX-License-Identifier: 0BSD
"""What is it measured on? Pictures, labels, preprocessing."""
