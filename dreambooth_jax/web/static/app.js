'use strict';

const main = document.querySelector('main');

function tell(text) {
  const told = document.querySelector('#told');
  told.textContent = text;
  told.hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { told.hidden = true; }, 8000);
}

// Asks the API; an answer that is no success is an error with its sentence.
async function ask(method, url, body, options = {}) {
  const raw = body instanceof Blob;
  const answer = await fetch(url, {
    method,
    body: body === undefined || raw ? body : JSON.stringify(body),
    headers: { 'content-type': raw ? 'application/octet-stream' : 'application/json' },
    ...options,
  });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let sentence = `the server answered ${answer.status}`;
  try { sentence = (await answer.json()).error || sentence; } catch { /* it was no JSON */ }
  throw new Error(sentence);
}

// Brings the parts of this page up to date, without touching those that are as they were.
const shown = new Map();
async function refresh(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const text = await answer.text();
  const keyed = document.querySelector('[data-keyed]');
  if (keyed) return refreshKeyed(keyed, text);
  const parts = document.querySelectorAll('[data-part]');
  let fresh = new DOMParser().parseFromString(text, 'text/html');
  for (const part of parts) {
    const found = parts.length === 1 ? fresh.body : fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!found) continue;
    const html = found.innerHTML;
    if (shown.get(part) === html) continue;
    shown.set(part, html);
    if (part.innerHTML === html) continue;
    replace(part, html);
  }
}
// A list whose entries have ids: those that are as they were stay, so that their images need not be drawn again.
function refreshKeyed(list, text) {
  const fresh = [...new DOMParser().parseFromString(text, 'text/html').body.children];
  const ids = new Set(fresh.map(one => one.id));
  for (const old of [...list.children]) if (!ids.has(old.id)) old.remove();
  fresh.forEach((one, at) => {
    const html = one.innerHTML;
    let there = document.getElementById(one.id);
    if (!there) {
      there = document.importNode(one, true);
      list.insertBefore(there, list.children[at] ?? null);
    } else if ((shown.get(one.id) ?? there.innerHTML) !== html) {
      const scrolled = there.querySelector('.table-scroll')?.scrollLeft;
      replace(there, html);
      if (scrolled) there.querySelector('.table-scroll').scrollLeft = scrolled;
    }
    shown.set(one.id, html);
  });
}
function replace(part, html) {
  const focused = part.contains(document.activeElement) ? document.activeElement.id : '';
  const open = [...part.querySelectorAll('details[open]')].map(one => one.id);
  const slides = [...part.querySelectorAll('.slider')].map(one => ({ url: one.dataset.url, at: one.dataset.at }));
  part.innerHTML = html; // it is the server's, which escapes whatever it shows
  for (const id of open) part.querySelector('#' + CSS.escape(id))?.setAttribute('open', '');
  for (const { url, at } of slides) {
    const slider = [...part.querySelectorAll('.slider')].find(one => one.dataset.url === url);
    if (slider && at) slide(slider, slider.dataset.steps.split(',').indexOf(at));
  }
  if (focused) part.querySelector('#' + CSS.escape(focused))?.focus();
}

// What is found in photos takes a while, so that the page is there before it; it is asked for anew when they change.
async function check() {
  const place = document.querySelector('[data-check]');
  if (!place) return;
  place.setAttribute('aria-busy', 'true');
  const answer = await fetch(place.dataset.check);
  const text = await answer.text();
  if (answer.ok) place.innerHTML = text; // it is the server's, which escapes whatever it shows
  else place.textContent = new DOMParser().parseFromString(text, 'text/html').querySelector('main')?.textContent.trim() || `the server answered ${answer.status}`;
  place.removeAttribute('aria-busy');
}
check().catch(() => {});

// The sample grids: the slider shows one of them. It stays where it is when more come, but at the end it goes on.
function slide(slider, number) {
  const steps = slider.dataset.steps.split(',');
  if (number < 0) return;
  const step = steps[number];
  const range = slider.querySelector('input');
  if (range) { range.value = number; range.setAttribute('aria-valuetext', `step ${step}`); }
  slider.querySelector('output').textContent = `step ${step}`;
  slider.dataset.at = number === steps.length - 1 ? '' : step;
  const url = slider.dataset.url + step;
  slider.querySelector('a').href = url;
  slider.querySelector('img').src = url;
  slider.querySelector('img').alt = `samples of step ${step}`;
}
main.addEventListener('input', event => {
  const slider = event.target.closest('.slider');
  if (slider) slide(slider, Number(event.target.value));
});

// Buttons and small forms that ask for something.
main.addEventListener('click', async event => {
  const button = event.target.closest('button[data-post], button[data-delete], button[data-unmask]');
  if (!button) return;
  if (button.dataset.sure && !confirm(button.dataset.sure)) return;
  button.disabled = true;
  try {
    if (button.dataset.post) await ask('POST', button.dataset.post);
    else if (button.dataset.unmask) await ask('PUT', button.dataset.unmask, new Blob());
    else await ask('DELETE', button.dataset.delete);
    if (button.dataset.then) location.href = button.dataset.then;
    else await update();
  } catch (error) {
    tell(error.message);
  } finally {
    button.disabled = false;
  }
});
main.addEventListener('submit', async event => {
  const form = event.target;
  if (!form.dataset.post) return;
  event.preventDefault();
  const body = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    const has = name => field.hasAttribute(name);
    if (has('data-optional') && field.value === '') continue;
    if (has('data-many')) {
      body[field.name] ??= [];
      if (field.checked) body[field.name].push(field.value);
    } else if (has('data-lines')) body[field.name] = field.value.split('\n').map(line => line.trim()).filter(Boolean);
    else body[field.name] = has('data-number') ? Number(field.value) : field.value;
  }
  try {
    await ask('POST', form.dataset.post, body);
    await update();
  } catch (error) {
    tell(error.message);
  }
});
main.addEventListener('change', async event => {
  if (!event.target.dataset.caption) return;
  try {
    await ask('PUT', event.target.dataset.caption, { caption: event.target.value });
    tell('The caption is saved.');
    await check();
  } catch (error) {
    tell(error.message);
  }
});
main.addEventListener('change', async event => {
  const { mask } = event.target.dataset;
  const file = event.target.files?.[0];
  if (!mask || !file) return;
  try {
    await ask('PUT', `${mask}?name=${encodeURIComponent(file.name)}`, file);
    await update();
    tell('The mask is saved; what it leaves out is darker.');
  } catch (error) {
    event.target.value = '';
    tell(error.message);
  }
});
const update = () => {
  const query = new URLSearchParams(location.search);
  query.set('part', 'all');
  return refresh(`${location.pathname}?${query}`).then(check);
};

// The list of runs looks again every few seconds; a run is told by its events, which come back after a restart.
const listed = document.querySelector('[data-refresh]');
if (listed) {
  setInterval(() => {
    if (document.hidden) return;
    update().then(() => {
      if (document.body.dataset.server === 'away') {
        document.querySelector('#told').hidden = true;
        // Images that the server was sending when it ended are asked for again.
        const broken = [...document.images].filter(one => one.getAttribute('src') && one.complete && !one.naturalWidth);
        for (const one of broken) one.src = one.getAttribute('src');
      }
      document.body.dataset.server = 'here';
    }, () => {
      document.body.dataset.server = 'away';
      tell('The server does not answer; what runs goes on without it. This page asks again and again.');
    });
  }, Number(listed.dataset.refresh));
}
const run = document.querySelector('#run');
if (run) {
  // Numbers change with every step, and each look costs the training a little time; what a person waits for is shown at
  // once: another state, samples, downloads.
  let asked = null, known = null;
  const look = wait => {
    const due = Date.now() + wait;
    if (asked && asked.due <= due) return;
    clearTimeout(asked?.timer);
    asked = { due, timer: setTimeout(() => { asked = null; update().catch(() => {}); }, wait) };
  };
  const source = new EventSource(`/api/runs/${encodeURIComponent(run.dataset.run)}/events?after=${run.dataset.after}`);
  source.addEventListener('metrics', () => look(2500));
  source.addEventListener('run', event => {
    const { progress, changed, ...rest } = JSON.parse(event.data), now = JSON.stringify(rest);
    look(now === known ? 2500 : 500);
    known = now;
  });
  source.addEventListener('error', () => {
    document.body.dataset.server = 'away';
    tell('The server does not answer; a run goes on without it. This page asks again and again.');
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 3000); // it asks no more by itself
  });
  source.addEventListener('open', () => {
    document.body.dataset.server = 'here';
    document.querySelector('#told').hidden = true;
    look(0);
  });
}

// An image and what its file says: in a dialog, where the arrows go on to the next one.
const dialog = document.querySelector('#looked-at');
if (dialog) {
  let at;
  const look = async link => {
    at = link.id;
    const url = link.getAttribute('href');
    dialog.querySelector('img').src = url;
    dialog.querySelector('img').alt = link.querySelector('img').alt;
    dialog.querySelector('#look-file').href = url;
    const facts = dialog.querySelector('dl');
    facts.replaceChildren();
    if (!dialog.open) dialog.showModal();
    try {
      const told = await ask('GET', `${url}/metadata`);
      if (at !== link.id) return; // another one is looked at already
      dialog.querySelector('img').classList.toggle('small', told.width < 256); // every pixel can be seen
      const marks = { trainedAlgorithmicMedia: 'generated by a trained model (IPTC trainedAlgorithmicMedia)' };
      const lines = {
        Prompt: told.prompt, 'Negative prompt': told.negative_prompt, ...told.values,
        Mark: marks[told.source] ?? told.source,
      };
      for (const [name, value] of Object.entries(lines)) {
        if (!value) continue;
        for (const [tag, text] of [['dt', name], ['dd', value]]) {
          facts.append(Object.assign(document.createElement(tag), { textContent: text }));
        }
      }
    } catch (error) {
      facts.append(Object.assign(document.createElement('dd'), { textContent: error.message }));
    }
  };
  const go = by => {
    const links = [...document.querySelectorAll('[data-look]')];
    const next = links[links.findIndex(one => one.id === at) + by];
    if (next) look(next);
  };
  main.addEventListener('click', event => {
    const link = event.target.closest('[data-look]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    look(link);
  });
  dialog.querySelector('#look-before').addEventListener('click', () => go(-1));
  dialog.querySelector('#look-after').addEventListener('click', () => go(1));
  dialog.addEventListener('keydown', event => {
    if (event.key === 'ArrowLeft') go(-1);
    if (event.key === 'ArrowRight') go(1);
  });
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => document.getElementById(at)?.focus());
}

// Photos: chosen or dropped, sent one after the other.
const drop = document.querySelector('.drop');
if (drop) {
  const bar = drop.querySelector('progress');
  const send = async files => {
    const refused = document.querySelector('#refused');
    refused.replaceChildren();
    const refuse = (file, why) => {
      const line = document.createElement('li');
      line.textContent = why.includes(file.name) ? why : `${file.name}: ${why}`;
      refused.append(line);
    };
    let folder = drop.dataset.folder;
    let taken = 0;
    bar.hidden = false;
    bar.max = files.length;
    bar.value = 0;
    try {
      if (!folder) folder = (await ask('POST', '/api/photos', {})).name;
      for (const file of files) {
        try {
          if (file.size > Number(drop.dataset.mostBytes)) throw new Error('the file is too large');
          await ask('POST', `/api/photos/${folder}?name=${encodeURIComponent(file.name)}`, file);
          taken += 1;
        } catch (error) {
          refuse(file, error.message);
        }
        bar.value += 1;
      }
      if (drop.dataset.folder) await update();
      else if (taken) location.href = `/photos/${folder}`;
      else await ask('DELETE', `/api/photos/${folder}`);
    } catch (error) {
      tell(error.message);
    }
    bar.hidden = true;
  };
  drop.querySelector('input').addEventListener('change', event => send([...event.target.files]));
  for (const kind of ['dragenter', 'dragover']) {
    drop.addEventListener(kind, event => { event.preventDefault(); drop.classList.add('over'); });
  }
  for (const kind of ['dragleave', 'drop']) drop.addEventListener(kind, () => drop.classList.remove('over'));
  drop.addEventListener('drop', event => { event.preventDefault(); send([...event.dataTransfer.files]); });
}

// A new run: what differs from the settings file is sent; the plan follows every change.
const form = document.querySelector('#new');
if (form) {
  const fields = [...form.querySelectorAll('[data-setting]')];
  const before = new Map(fields.map(field => [field, field.value]));
  const read = field => {
    const text = field.value;
    switch (field.dataset.type) {
      case 'choice': return JSON.parse(text);
      case 'lines': return text.split('\n').map(line => line.trim()).filter(Boolean);
      case 'number':
        if (!text.trim()) return null;
        if (isNaN(Number(text))) throw new Error(`config.${field.dataset.setting} must be a number, got '${text}'`);
        return Number(text);
      case 'json':
        if (!text.trim()) return null;
        try { return JSON.parse(text.replace(/^\((.*)\)$/, '[$1]')); } catch {
          throw new Error(`config.${field.dataset.setting} must be written as a list, such as [0, 50]`);
        }
      default: return text === '' && 'optional' in field.dataset ? null : text;
    }
  };
  const wanted = () => {
    const [config, ...preset] = form.querySelector('#config').value.split(':');
    const settings = {};
    for (const field of fields) if (field.value !== before.get(field)) settings[field.dataset.setting] = read(field);
    return { config, preset: preset.join(':'), photos: form.querySelector('#photos').value || null, settings };
  };
  const wrong = form.querySelector('#wrong');
  const state = document.querySelector('#plan-state');
  const planned = document.querySelector('#planned');
  const stepsField = fields.find(field => field.dataset.setting === 'base.steps');
  const aboutSteps = planned.querySelector('#about-steps');
  const takeSteps = planned.querySelector('#take-steps');
  const show = answer => {
    for (const fact of planned.querySelectorAll('[data-fact]')) {
      fact.textContent = answer[fact.dataset.fact] ?? '';
      fact.hidden = fact.previousElementSibling.hidden = !fact.textContent;
    }
    // More steps are proposed in the proportion of those that are set, which is right for those of the settings file.
    const proposed = answer.proposed_steps;
    aboutSteps.hidden = !answer.about_steps || (proposed !== null && stepsField.value !== before.get(stepsField));
    aboutSteps.previousElementSibling.hidden = aboutSteps.hidden;
    aboutSteps.firstElementChild.textContent = answer.about_steps?.replace(/^steps: /, '') ?? '';
    takeSteps.hidden = proposed === null;
    takeSteps.value = proposed ?? '';
    takeSteps.textContent = `Take ${takeSteps.value} steps`;
    // The settings are in the form already, so that they are folded away, and what is about steps stands above.
    const blocks = answer.plan.replace(`    ${answer.about_steps}\n`, '').split('\n\n');
    const isSettings = block => block.startsWith('settings:');
    planned.querySelector('#plan').textContent = blocks.filter(block => !isSettings(block)).join('\n\n');
    planned.querySelector('#plan-settings pre').textContent = blocks.filter(isSettings).join('\n');
    planned.hidden = false;
    state.textContent = answer.note ?? '';
  };
  takeSteps.addEventListener('click', () => {
    stepsField.value = takeSteps.value;
    stepsField.focus(); // the button goes away with what it proposes
    stepsField.dispatchEvent(new Event('input', { bubbles: true }));
  });
  let timer, running;
  const replan = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      running?.abort();
      const mine = running = new AbortController();
      state.textContent = 'Planning …';
      try {
        show(await ask('POST', '/api/plan', wanted(), { signal: mine.signal }));
        wrong.textContent = '';
      } catch (error) {
        if (mine.signal.aborted) return;
        planned.hidden = true;
        state.textContent = 'There is no plan.';
        wrong.textContent = error.message;
      }
    }, 600);
  };
  // The samples' prompts follow the subject's and the class's until they are changed themselves.
  const [instance, ofClass, samples] = ['data.instance_prompt', 'data.class_prompt', 'samples.prompts']
    .map(name => fields.find(field => field.dataset.setting === name));
  let follows = true;
  const follow = () => {
    if (!follows || !samples) return;
    const [from, to] = [before.get(instance), instance.value];
    samples.value = before.get(samples).split('\n').map(line =>
      line === before.get(ofClass) ? ofClass.value : from && line.startsWith(from) ? to + line.slice(from.length) : line
    ).filter(Boolean).join('\n');
  };
  form.addEventListener('input', event => {
    if (event.target === samples) follows = false;
    if (event.target === instance || event.target === ofClass) follow();
    for (const field of fields) field.classList.toggle('changed', field.value !== before.get(field));
    if (event.target.id === 'config') {
      const query = new URLSearchParams({ config: event.target.value, photos: form.querySelector('#photos').value });
      location.href = `/new?${query}`; // another file has other values
      return;
    }
    if (event.target.id !== 'name') replan();
  });
  form.addEventListener('submit', async event => {
    event.preventDefault();
    try {
      const made = await ask('POST', '/api/runs', { name: form.querySelector('#name').value, ...wanted() });
      running?.abort();
      location.href = `/runs/${encodeURIComponent(made.id)}`;
    } catch (error) {
      wrong.textContent = error.message;
    }
  });
  replan();
}
