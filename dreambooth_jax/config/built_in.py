"""The models that ship with the package: their names, and the settings with which they generate best."""

STORYBOOK = 'storybook'  # a cascade in the layout of DeepFloyd IF
STORYBOOK_FLOW = 'storybook-flow'  # a rectified flow in the layout of Z-Image
BUILT_IN = (STORYBOOK, STORYBOOK_FLOW)
BUILT_IN_NAMES = ' and '.join(map(repr, BUILT_IN))  # for errors

# As measured by experiments/storybook_base.
STORYBOOK_SAMPLING = {'steps': 25, 'guidance_scale': 4.0, 'sampler': 'ddpm'}
STORYBOOK_ENLARGING = {'sample_steps': 15, 'sample_guidance_scale': 1.0}  # the same for its second stage
STORYBOOK_CPU_DEVICES = 2  # as which both generate fastest on two cores
STORYBOOK_FLOW_SAMPLING = {'steps': 20, 'guidance_scale': 4.0, 'sampler': 'euler'}
