"""A stand-in for gcloud that test_launch_tpu.py puts on PATH. Its VM is the folder $VM."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

vm, arguments = pathlib.Path(os.environ['VM']), sys.argv[1:]
with open(vm / 'calls.jsonl', 'a') as file:
    file.write(json.dumps(arguments) + '\n')
assert arguments[:3] == ['compute', 'tpus', 'tpu-vm']
verb, rest = arguments[3], [argument for argument in arguments[4:] if not argument.startswith('--')]
options = dict(argument[2:].partition('=')[::2] for argument in arguments[4:] if argument.startswith('--'))
state, home = vm / 'state', vm / 'home'
assert rest[-1].startswith('dog') or verb == 'scp'
if (vm / f'{verb}_fails').exists():
    sys.exit((vm / f'{verb}_fails').read_text())
if verb == 'describe':
    if not state.exists():
        sys.exit('ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found')
    print(state.read_text())
elif verb == 'create':
    state.write_text('READY\t' + options['accelerator-type'])
    home.mkdir()
elif verb == 'start':
    state.write_text('READY\tv5litepod-8')
elif verb == 'delete':
    state.unlink()
    shutil.rmtree(home, ignore_errors=True)
elif verb == 'scp':
    source, target = [home / word[4:] if word.startswith('dog:') else pathlib.Path(word) for word in rest]
    assert ('recurse' in options) == source.is_dir()
    if source.is_dir():
        shutil.copytree(source, target / source.name, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
elif verb == 'ssh':
    assert options['worker'] in ('all', '0')
    there = os.environ | {'HOME': str(home)}
    sys.exit(subprocess.run(['bash', '-c', options['command']], cwd=home, env=there).returncode)
