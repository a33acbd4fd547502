"""Cycles of a program for TPUs, read from what their compiler writes; splash.py says what they count.

Source: the texts of libtpu 0.0.42, of which no description is published.
"""

import re


def program_cycles(text: str, parts: int) -> int:
    """Cycles of a compiled program's operations without kernels, by the compiler's estimates in its text.

    Args:
      text: the program; all of its loops run over the parts.
      parts: how often.
    """
    total, inside = 0, ''
    loops = set(re.findall(r' while\(.*body=%([\w.-]+)', text))
    for line in text.splitlines():
        if start := re.match(r'(?:ENTRY )?%([\w.-]+) \(', line):
            inside = start[1]
        found = re.search(r'"estimated_cycles":"(\d+)"', line)
        total += int(found[1]) * (parts if inside in loops else 1) if found else 0
    return total


def kernel_cycles(bundles: str) -> int:
    """Cycles of a kernel: the instructions in its loop, times its turns.

    Args:
      bundles: what the compiler writes of it (final_bundles.txt), a line for an instruction, with a > in a loop.

    Raises:
      ValueError: if there is not exactly one loop.
    """
    turns = re.findall(r'scmp\.ge\.s32\.totalorder [^,]*, (\d+) /\* loop exit test', bundles)
    marks = re.findall(r'^ *0x[0-9a-f]+ +(?:\w+)? *: *(>+) *\{', bundles, re.MULTILINE)
    if len(turns) != 1 or set(marks) != {'>'}:
        raise ValueError(f'a kernel has loops of {turns} turns, where one was expected')
    return len(marks) * int(turns[0])
