# SPDX-License-Identifier: 0BSD
"""Does it run, and agree? Build, library, verification, benchmark."""
