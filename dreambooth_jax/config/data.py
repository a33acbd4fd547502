"""The settings of the subjects and of their images."""

import dataclasses

from dreambooth_jax.config.built_in import BUILT_IN, BUILT_IN_NAMES
from dreambooth_jax.config.schema import Config, ConfigError, path_setting, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectConfig(Config):
    """One subject: where its images are, and the words for the subject and for its class."""

    # Folder with 3-5 images of the subject. A text file beside an image (dog.txt beside dog.jpg) is its caption and
    # replaces instance_prompt for that image. None: the built-in images of the Storybook subject below.
    instance_dir: str | None = path_setting(None)
    # A dataset of TensorFlow Datasets (TFDS) instead of the folder: 'dreambench/dog', the paper's photos, which
    # data.tfds_manual_dir holds; 'dreambench/storybook_dog', painted; or any that is prepared as array_record with
    # exactly one image in an example. Captions and masks are not read from datasets.
    tfds: str | None = None
    # What is read of that dataset, in TFDS's notation: 'train', 'train[:5]'. None: all splits.
    tfds_split: str | None = None
    # Name of a built-in Storybook subject, one of the dataset's 30. It and the next two settings are used only while
    # instance_dir and tfds are None.
    subject: str | None = None
    # Whether its images have what photos may have beside them: captions, which say after instance_prompt in which place
    # an image was taken, and masks, with which the loss counts the subject alone.
    subject_captions: bool = False
    subject_masks: bool = False
    # "a [identifier] [class noun]", such as 'a sks dog'. The identifier is a rare token of the model's tokenizer; the
    # program find_identifier lists such tokens.
    instance_prompt: str = ''
    # "a [class noun]", such as 'a dog'. It may stay empty if prior.weight is 0.
    class_prompt: str = ''

    def check_complete(self, path: str, model: str, *, uses_class: bool) -> None:
        """Checks that this subject has every setting that training needs.

        Args:
          path: dotted name of this group of settings, for the error.
          model: the setting `model`; only the models that ship with the package have built-in subjects.
          uses_class: whether the run trains on class examples, which need the class prompt.

        Raises:
          ConfigError: if a setting is missing.
        """
        if None not in (self.instance_dir, self.tfds):
            both = f'{path}.instance_dir is {self.instance_dir!r} and {path}.tfds is {self.tfds!r}'
            raise ConfigError(f'{both}, but the images come from one of them; set the other to None')
        if self.tfds is None and self.tfds_split is not None:
            raise ConfigError(f'{path}.tfds_split is {self.tfds_split!r} but {path}.tfds is None; set that too')
        is_built_in = self.instance_dir is None and self.tfds is None
        if is_built_in and model not in BUILT_IN:
            raise ConfigError(
                f"{path}.instance_dir must be given when config.model is {model!r}: the folder of the subject's "
                f'images, or {path}.tfds, a dataset of them (only {BUILT_IN_NAMES} have built-in subjects)'
            )
        if is_built_in and self.subject is None:
            names = f'{path}.instance_dir (a folder), {path}.tfds (a dataset) or {path}.subject (a built-in one)'
            raise ConfigError(f'{names} must be given')
        if not self.instance_prompt.strip():
            raise ConfigError(f"{path}.instance_prompt must be given, for example 'a sks dog'")
        if uses_class and not self.class_prompt.strip():
            raise ConfigError(
                f"{path}.class_prompt must be given, for example 'a dog', or config.prior.weight be 0 to train without "
                f'the class'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(SubjectConfig):
    """The subject's images, and how they are read."""

    # Side of the square training images, in pixels. None: the side at which the model itself generates.
    resolution: int | None = setting(None, '> 0')
    # Mirror half of the examples, chosen at random. It is off by default because a mirrored image teaches that a badge
    # may be on either side, and reverses lettering.
    random_flip: bool = False
    # How many square crops of each image are trained on: first the centre crop, then random ones. 1: the centre alone.
    crops: int = setting(1, '> 0')
    # True keeps each photo's ratio of width to height: the photo is resized to the nearest of a set of sizes that all
    # have about resolution^2 pixels, with ratios from 1:2 to 2:1. All examples of a step have the same size. Every size
    # in use costs one more compilation of the step and, in the device's memory, one more copy of the class images at
    # that size. False: each photo is cropped to the square in its middle. Either way the x4 upscaler trains on square
    # crops from all over the photo.
    aspect_buckets: bool = False
    # Folder of TFDS's prepared datasets. None: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets.
    tfds_dir: str | None = path_setting(None)
    # Folder that dreambench's photos are prepared from, once: the folder dataset of a clone of
    # https://github.com/google/dreambooth. None: downloads/manual in tfds_dir.
    tfds_manual_dir: str | None = path_setting(None)
    # Whose consent the photos were given with, and how, such as 'Ana Lima, by letter of 2026-11-02'. Required for class
    # nouns of people, and for photos whose files say "do not train". It is written into config.json and the model card,
    # and nothing checks it.
    consent: str | None = None
    # Several subjects in one run. They replace the settings of one subject (instance_dir, tfds, tfds_split, subject,
    # instance_prompt, class_prompt), which must then stay empty.
    subjects: tuple[SubjectConfig, ...] = setting((), formerly='concepts')

    def check(self, path: str) -> None:
        if self.consent is not None and not self.consent.strip():
            do = 'say whose consent it is and how it was given, or leave it None'
            raise ConfigError(f'{path}.consent is empty; {do}')
        if self.subjects:
            for field in dataclasses.fields(SubjectConfig):
                if getattr(self, field.name):
                    raise ConfigError(
                        f'{path}.{field.name} is {getattr(self, field.name)!r} but {path}.subjects names the subjects '
                        f'of this run; leave one of the two empty'
                    )
        for name in ('tfds_dir', 'tfds_manual_dir'):
            if getattr(self, name) is not None and all(one.tfds is None for one in self.subjects or (self,)):
                given = f'{path}.{name} is {getattr(self, name)!r}'
                raise ConfigError(f'{given} but no subject is read from a dataset (tfds); leave it None')
