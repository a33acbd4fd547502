"""Web pages and an HTTP API over a folder of runs, for one person on the machine that trains.

The runs' folders are the only truth: what is shown is read from them, what is asked for goes into their control/ or is
a process with the command line that a user would type (jobs.py). So a run that was started by hand is shown like any
other, and one that was started here goes on without the server. Nothing here imports JAX, whose devices belong to the
processes that train, and nothing else imports this.

runs.py            what a run's folder says
numbers.py         metrics.jsonl, of which only what is new is read
jobs.py            the queue of processes
generations.py     images that are asked for, and the processes that generate them
commands.py        settings -> a command line
photos.py          uploaded photos
guard.py           who may ask
api.py, events.py  the API
generate_api.py    its part about images, with image_metadata.py, what their files say
pages.py           the pages
archive.py         folders as one download
"""
