# SPDX-License-Identifier: 0BSD
"""What does a person see? The report and its figures."""
