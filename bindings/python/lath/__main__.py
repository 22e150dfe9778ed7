# SPDX-License-Identifier: Apache-2.0
"""``python -m lath`` prints what :func:`lath.info` knows."""

from .info import info

if __name__ == "__main__":
    print(info())
