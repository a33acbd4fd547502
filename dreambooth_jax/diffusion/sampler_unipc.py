"""unipc: UniPC of order 1 to 3, a predictor like DPM-Solver++ and a corrector that costs no further network call.

It is UniPCMultistepScheduler (order 2, bh2, last sigma zero, unless the file says otherwise) with predictions of x0:
Zhao et al. 2023. Once the network has answered for the predicted x, the corrector takes the last step again with that
answer, and the predictor goes on from the corrected x. Both are linear in x0 and the earlier x0, so their coefficients
are columns of the table. They are solved for in float64 on the host.
"""

from typing import Any

import numpy as np

from dreambooth_jax.diffusion.spacing import noise_ratios, spread_ratios, spread_times, times_of
from dreambooth_jax.diffusion.step_table import (
    FINAL_SIGMAS,
    LINSPACE,
    SIGMA_SPACINGS,
    THRESHOLDING,
    Correction,
    Sampler,
    Sampling,
    SchedulerFileError,
    StepTable,
    make_table,
)


def _columns(process: Any, sampling: Sampling, num_steps: int, eta: float) -> StepTable:
    del eta
    times, ratio = _path(process, sampling, num_steps)
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    with np.errstate(divide='ignore'):
        log_snr = -np.log(ratio)  # lambda = log(alpha / sigma), infinite where the image is finished
    count, most = len(times), sampling.solver_order
    order = np.minimum(np.arange(count) + 1, most)
    if sampling.lower_order_final:
        order = np.minimum(order, count - np.arange(count))
    # Of x, of x0, and of the x0 of 1, 2, ... steps ago.
    predictor, corrector = np.zeros((count, 2 + most)), np.zeros((count, 3 + most))
    for step in range(count):
        weights = _weights(log_snr, step, order[step], sampling.solver_type, corrects=False)
        predictor[step, 0] = sigma[step + 1] / sigma[step]
        predictor[step, 1 : 1 + order[step]] = alpha[step + 1] * weights
        if step == 0 or step - 1 in sampling.disable_corrector:
            continue
        weights = _weights(log_snr, step - 1, order[step - 1], sampling.solver_type, corrects=True)
        corrector[step, 1] = sigma[step] / sigma[step - 1]
        corrector[step, 2 : 3 + order[step - 1]] = alpha[step] * weights
    # Where nothing is corrected, x stays as it is.
    corrector[:, 0] = ~corrector.any(axis=1)
    return make_table(
        t=times,
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        x=predictor[:, 0],
        x0=predictor[:, 1],
        previous_x0=tuple(predictor[:, 2:].T),
        correction=Correction(
            x=corrector[:, 0],
            previous_x=corrector[:, 1],
            x0=corrector[:, 2],
            previous_x0=tuple(corrector[:, 3:].T),
        ),
    )


def _weights(log_snr: np.ndarray, step: int, order: int, kind: str, *, corrects: bool) -> np.ndarray:
    """Returns the weights of x0 in the step from `step` to `step + 1`, the newest first.

    They are those of x0 at `step`, `step - 1`, ..., f64[order]; with `corrects`, that at `step + 1` comes before them.
    The sum of the weights is 1 - e^-h, where h is the step in lambda.

    Args:
      log_snr: lambda of every step, f64[N + 1].
      order: of the predictor; the corrector's is one higher.
      kind: 'bh1' or 'bh2', the function B(h) of Zhao et al. 2023.
    """
    h = log_snr[step + 1] - log_snr[step]
    if np.isinf(h):  # The last step to the clean image is of first order, and x0 is the image.
        return np.ones(1)
    total = -np.expm1(-h)
    scale = -h if kind == 'bh1' else np.expm1(-h)
    # The distances of the nodes in units of h: those of the earlier x0, which are negative, and 1 for `step + 1`.
    nodes = np.array([(log_snr[step - back] - log_snr[step]) / h for back in range(1, order)] + [1.0])
    # b_k = k! phi_{k+1}(-h) / B(h) times -h, by the recursion phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z.
    right, phi, factorial = [], np.expm1(-h) / -h - 1, 1
    for k in range(1, order + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    powers = np.stack([nodes**k for k in range(order)])
    # The first-order corrector and the second-order predictor have a simpler solution, which ends less exactly.
    if corrects:
        solution = np.array([0.5]) if order == 1 else np.linalg.solve(powers, right)
    elif order == 2:
        solution = np.array([0.5])
    else:
        solution = np.linalg.solve(powers[:-1, :-1], right[:-1])
    # A solution weights (x0 at a node - x0 at `step`) / distance.
    slopes = -scale * solution / nodes[: len(solution)]
    earlier = slopes[: order - 1]
    newest = total - slopes.sum()
    return np.concatenate([slopes[order - 1 :], [newest], earlier])


def _path(process: Any, sampling: Sampling, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    # The times, f64[N], and sigma / alpha, f64[N + 1], of which the last is that of the finished image.
    ratios = noise_ratios(process)
    end = ratios[0]
    if sampling.sigma_spacing is None:
        times = spread_times(process, sampling, num_steps, 'unipc', omits_zero=True)
        path = ratios[times.astype(np.int64)]
    else:
        if not sampling.ends_clean:
            raise SchedulerFileError(
                "the scheduler file's final_sigmas_type is 'sigma_min' together with a spacing of sigmas, with which "
                "sampler unipc would take a last step of length 0; set it to 'zero' there."
            )
        path = spread_ratios(ratios, sampling, num_steps)
        times = times_of(path, np.log(ratios))
        # diffusers rounds in this case and truncates in the others.
        times = times.round() if sampling.sigma_spacing == 'karras' else times.astype(np.int64)
    if sampling.ends_clean and not sampling.lower_order_final and sampling.solver_order > 1:
        raise SchedulerFileError(
            "the scheduler file's lower_order_final is false, with which sampler unipc cannot end at a sigma of zero; "
            "set it to true there, or final_sigmas_type to 'sigma_min'."
        )
    path = np.append(path, 0.0 if sampling.ends_clean else end).astype(np.float32).astype(np.float64)
    if np.any(np.diff(path) >= 0):
        raise ValueError(f'steps is {num_steps}: sampler unipc would take a step of length 0; take fewer.')
    return times, path


UNIPC = Sampler(
    diffusers_class='UniPCMultistepScheduler',
    defaults={
        **THRESHOLDING,
        **LINSPACE,
        'solver_order': 2,
        'solver_type': 'bh2',
        'predict_x0': True,
        'lower_order_final': True,
        'disable_corrector': [],
        'final_sigmas_type': 'zero',
        **SIGMA_SPACINGS,
    },
    meanings={
        'predict_x0': ('predict_x0', {True: True}),
        'solver_order': ('solver_order', {1: 1, 2: 2, 3: 3}),
        # The names of other classes stand for the default, as in diffusers.
        'solver_type': (
            'solver_type',
            {'bh1': 'bh1', 'bh2': 'bh2', 'midpoint': 'bh2', 'heun': 'bh2', 'logrho': 'bh2'},
        ),
        **FINAL_SIGMAS,
    },
    columns=_columns,
)
