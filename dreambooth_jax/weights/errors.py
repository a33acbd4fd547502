"""What every part of weights/ raises."""

from collections.abc import Sequence

SHOWN = 50  # problems in the message; a wrong model has thousands


class WeightsError(ValueError):
    """Weights, a configuration or a folder that cannot be used.

    Args of the constructor:
      sentence: file or model, what was found, what is allowed, what to do.
      problems: all that is wrong, one line each; the message shows the first SHOWN.
    """

    def __init__(self, sentence: str, problems: Sequence[str] = ()):
        self.problems = tuple(problems)
        lines = [sentence, *(f'  {problem}' for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f'  and {len(self.problems) - SHOWN} more')
        super().__init__('\n'.join(lines))
