"""The rule by which the best checkpoint is chosen.

A checkpoint is measured on three scales, each made by the run itself, so that neither the encoder nor the subject
decides what a good number is:

  subject fidelity   DINO between images of the subject and its photos: 0 is the model before training, asked for the
                     same prompts without the identifier; 1 is the likeness of the photos among each other. Photos were
                     taken in different places, so that images which know the subject can be more alike: up to MOST
  prompt fidelity    CLIP-T without the identifier: 0 are the former model's images of the class prompt, which show
                     nothing of the rest of the prompt; 1 are its images of the whole prompt
  drift              DINO between images of the class prompt and the photos (PRES): 0 is the model before training, 1
                     is the likeness of the photos among each other, as if every member of the class were the subject

The trade-off of the first two is their harmonic mean, in which the subject weighs four times as much as the prompt (the
F measure with beta = 2): a checkpoint that has lost one of them is not saved by the other. Without that weight the rule
stopped too early, since CLIP-T falls before contexts are lost (experiments/evaluation, where MOST and BETA were chosen
on five subjects). Checkpoints are compared in the order in which they were trained. A later one takes the place of the
best so far

  - if it is within the bound of drift and the other one is not;
  - if both are within, and its trade-off is better by more than MARGIN: neighbouring checkpoints differ by chance, and
    of equals the one with less training has moved the model less;
  - if both are within, and neither shows anything of the subject (a trade-off of 0): the one with more training;
  - if both are beyond, and it has drifted less.

So the best one is known at any time, only it and the newest have to be kept, and a run that goes on chooses as one that
was not interrupted. A single photo has no likeness to others; 1 is then a cosine of 1, its likeness to itself, which
makes all numbers smaller and their order the same.

Sources: Ruiz et al. 2023, sections 4.1 and 4.3 (DINO, CLIP-T, PRES); van Rijsbergen 1979 (the F measure); the margin is
what others call min_delta.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

MARGIN = 0.02
BETA = 2.0  # how many times as important the subject is as the prompt
MOST = 1.25  # subject fidelity is cut here
_SHORTEST = 0.02  # of a scale whose ends, by chance or with photos unlike each other, lie closer or the wrong way round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The ends of the three scales for one subject; all are mean cosines.

    Attributes:
      dino: between the former model's images of the plain prompts and the photos.
      pres: between its images of the class prompt and the photos.
      ceiling: between different photos; 1 if there is only one.
      clip_t: between its images of the plain prompts and these prompts.
      clip_t_of_class: between its images of the class prompt and these prompts.
    """

    dino: float
    pres: float
    ceiling: float
    clip_t: float
    clip_t_of_class: float

    def measured(self, dino: float, clip_t: float, pres: float) -> dict[str, float]:
        """Returns the three numbers of a checkpoint on these scales, and the trade-off; only drift may be negative."""
        subject = min(max(_share(dino, self.dino, self.ceiling), 0.0), MOST)
        prompt = min(max(_share(clip_t, self.clip_t_of_class, self.clip_t), 0.0), 1.0)
        return {
            'subject_fidelity': subject,
            'prompt_fidelity': prompt,
            'drift': _share(pres, self.pres, self.ceiling),
            'trade_off': trade_off(subject, prompt),
        }


def trade_off(subject: float, prompt: float) -> float:
    """Returns the weighted harmonic mean of both fidelities; 0 if one of them is."""
    weight = BETA**2
    return (1 + weight) * subject * prompt / (weight * prompt + subject) if subject + prompt else 0.0


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / max(high - low, _SHORTEST)


def rule(max_drift: float) -> str:
    """Returns the rule in words."""
    return (
        f'in the order of training, a checkpoint takes the place of the best so far if its trade-off, the harmonic '
        f'mean of subject_fidelity, with weight {BETA**2:g}, and prompt_fidelity, is better by more than {MARGIN}; one '
        f'whose drift is at most {max_drift:g} always goes before one that has drifted more, and of two that have, the '
        f'one that has drifted less; of two whose trade-off is 0, the later one'
    )


def is_better(new: Mapping[str, Any], best: Mapping[str, Any] | None, max_drift: float) -> bool:
    """Returns whether `new` takes the place of `best`, an earlier checkpoint; both have what Scale.measured returns."""
    if best is None:
        return True
    within, was_within = new['drift'] <= max_drift, best['drift'] <= max_drift
    if within != was_within:
        return within
    if not within:
        return new['drift'] < best['drift']
    return best['trade_off'] == 0 or new['trade_off'] > best['trade_off'] + MARGIN


def choose(candidates: Sequence[Mapping[str, Any]], max_drift: float) -> Mapping[str, Any] | None:
    """Returns the best of the candidates, which are in the order of training; None if there are none."""
    best = None
    for candidate in candidates:
        best = candidate if is_better(candidate, best, max_drift) else best
    return best


def without_gain(candidates: Sequence[Mapping[str, Any]], max_drift: float, since: int = 0) -> int:
    """Counts the evaluations that have brought no better checkpoint since the best one, for the setting `patience`.

    Nothing is counted before any of the subject has been learned, as there is nothing to lose then.

    Args:
      since: earlier steps are not counted.
    """
    best = choose(candidates, max_drift)
    if best is None or best['trade_off'] <= 0:
        return 0
    return sum(candidate['step'] > max(best['step'], since) for candidate in candidates)
