"""Prior preservation by the frozen model's prediction: class examples are held to what the network said before
fine-tuning.

A class example shows one of the subject's images under its class prompt, noised like any other, and its target is not
the noise but the answer of the frozen network to the same input. So no class images are generated, and the model is
held exactly where fine-tuning pulls at it; what it knows of images unlike the subject's is held only by what they
share.
Sources: Li & Hoiem 2016, Learning without Forgetting, whose response on the new task's data is kept; OneTrainer's prior
prediction.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.stages.text_conditioning import take

# (x_t, t) -> what the frozen network answers, and bool[B]: the examples that are held to it; others hold anything
# finite.
Lesson = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The frozen network of a stage.

    Attributes:
      unet: (params, x_t, t, **text) -> prediction, as the pipeline had it before fine-tuning.
      class_examples: as many class examples as a batch of the loss ever has (pairs.most_class_examples), and no other
        example is computed; None: all examples are, as they must be where a batch is sharded, which a choice of
        examples would gather.
    `frozen` holds for it: teacher, its parameters; teacher_text, the text of all prompts by the frozen text encoders;
    class_prompt_of i32[N], each image's class prompt.
    """

    unet: Callable
    class_examples: int | None = None

    def lesson(
        self,
        frozen: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        prompt: jax.Array,
        *,
        beside: jax.Array | None = None,
        **labels: jax.Array,
    ) -> Lesson:
        """What this batch is taught.

        Args:
          batch: `is_instance` f32[B], 0 for class examples.
          prompt: i32[B], the prompts that the network in training is shown too, dropped ones dropped.
          beside: f32[B, H, W, C'], channels that it is given with x_t. labels: more for it, an example each.
        """
        is_class = batch['is_instance'] == 0

        def answer(x_t, t):
            x = x_t if beside is None else jnp.concatenate([x_t, beside], axis=-1)
            inputs = {'x': x, 't': t, 'prompt': prompt, 'labels': labels}
            if self.class_examples is None:
                return self._answer(frozen, **inputs), is_class
            indices = jnp.argsort(~is_class)[: self.class_examples]
            some = self._answer(frozen, **take(inputs, indices))
            return jnp.zeros((len(x), *some.shape[1:])).at[indices].set(some), is_class

        return answer

    def _answer(self, frozen, x, t, prompt, labels):
        text = take(frozen['teacher_text'], prompt)
        output = self.unet(frozen['teacher'], x, t, **text, **labels)
        return jax.lax.stop_gradient(output.astype(jnp.float32))
