"""The error that every module of weights/ raises."""

from collections.abc import Sequence

SHOWN = 50  # number of problems that the message lists; the weights of a wrong model have thousands


class WeightsError(ValueError):
    """Weights, a configuration or a folder cannot be used.

    Args:
      sentence: says which file or model it is, what was found, what is allowed and what the user can do.
      problems: every single problem, one line each. The message lists the first SHOWN; `problems` keeps all of them.
    """

    def __init__(self, sentence: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        lines = [sentence, *(f'  {problem}' for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f'  and {len(self.problems) - SHOWN} more')
        super().__init__('\n'.join(lines))
