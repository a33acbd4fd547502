"""Prior preservation by distillation: class examples are held to the prediction of the network before fine-tuning.

A class example shows one of the subject's images under its class prompt, alone or with words such as 'wearing a hat'
after it (prior.phrases), noised like any other example. Its target is not the noise but the prediction of the frozen
network for the same input. So no class images are needed, and the model is held exactly where fine-tuning changes it.
Its knowledge of images that are unlike the subject's is held only as far as they share something. Class images with
such words would bind them to other members of the class: the subject was lost there (experiments/subjects).

Sources: Li & Hoiem 2016, Learning without Forgetting, which keeps the network's responses to the data of the new task;
  OneTrainer's prior prediction.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.families.prompts import take

# (x_t, t) -> the prediction of the frozen network, and bool[B]: the examples that are held to it. The prediction for
# other examples may be any finite value.
Lesson = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The frozen teacher of a stage.

    For it, `frozen` holds: teacher, the parameters of the frozen network; teacher_text, the text of all prompts by the
    frozen text encoders; class_prompt_of i32[N, V], the class prompts of each image. `batch` holds
    taught bool[B] and turn i32[B], which of them it is (Feed.pick).

    Attributes:
      predict: (params, x_t, t, conditioning) -> prediction, as the pipeline has it before fine-tuning.
      class_examples: the largest number of class examples in any batch of the loss (pairs.most_class_examples); the
        teacher then computes only that many examples. None: it computes all examples. This is needed where a batch is
        sharded, because choosing examples would gather the batch.
    """

    predict: Callable
    class_examples: int | None = None

    def lesson(
        self,
        frozen: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        prompt: jax.Array,
        seen: Mapping[str, jax.Array] | None = None,
    ) -> Lesson:
        """Returns what the teacher says about this batch, as a function of x_t and t.

        Args:
          frozen: the frozen data of the stage.
          batch: holds `taught` bool[B], the class examples that are held to the teacher (Feed.pick).
          prompt: i32[B], the same prompts as for the network in training, with the same ones dropped.
          seen: what the network in training sees besides x_t and the prompt, one entry per example.
        """
        taught = batch['taught']

        def answer(x_t, t):
            inputs = {'x_t': x_t, 't': t, 'prompt': prompt, 'seen': dict(seen or {})}
            if self.class_examples is None:
                return self._answer(frozen, **inputs), taught
            # Those that are taught come first in this order, because False sorts before True.
            indices = jnp.argsort(~taught)[: self.class_examples]
            some = self._answer(frozen, **take(inputs, indices))
            return jnp.zeros((len(x_t), *some.shape[1:])).at[indices].set(some), taught

        return answer

    def _answer(self, frozen, x_t, t, prompt, seen):
        conditioning = {**take(frozen['teacher_text'], prompt), **seen}
        return jax.lax.stop_gradient(self.predict(frozen['teacher'], x_t, t, conditioning).astype(jnp.float32))
