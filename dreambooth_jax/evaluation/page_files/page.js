'use strict';
document.documentElement.classList.add('scripted');

// The sample grids: the slider shows one of them.
for (const slider of document.querySelectorAll('.slider')) {
  const range = slider.querySelector('input');
  const grids = slider.querySelectorAll('.grid');
  const told = slider.querySelector('output');
  if (!range) continue;
  range.value = grids.length - 1; // a browser may bring back where it stood before a reload
  range.addEventListener('input', () => {
    grids.forEach((grid, number) => grid.toggleAttribute('data-shown', number === Number(range.value)));
    told.textContent = 'step ' + grids[range.value].dataset.step;
    range.setAttribute('aria-valuetext', told.textContent);
  });
}

// An image is shown large; the arrow keys go to its neighbours.
const dialog = document.querySelector('dialog');
const thumbs = [...document.querySelectorAll('.thumb')];
let shown = 0;
function enlarge(number) {
  shown = (number + thumbs.length) % thumbs.length;
  const image = thumbs[shown].querySelector('img');
  dialog.querySelector('img').src = image.src;
  dialog.querySelector('img').alt = image.alt;
  dialog.querySelector('p').textContent = image.alt;
}
thumbs.forEach((thumb, number) => thumb.addEventListener('click', () => {
  enlarge(number);
  dialog.showModal();
}));
dialog.querySelector('button').addEventListener('click', () => dialog.close());
dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener('close', () => thumbs[shown].focus());
dialog.addEventListener('keydown', event => {
  if (event.key === 'ArrowRight') enlarge(shown + 1);
  if (event.key === 'ArrowLeft') enlarge(shown - 1);
});

// Tables are sorted by the column whose heading is clicked: numbers from the highest, prompts in their own order.
for (const table of document.querySelectorAll('.sortable')) {
  const heads = [...table.querySelectorAll('thead th')];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const before = head.getAttribute('aria-sort');
    const order = before ? (before === 'ascending' ? 'descending' : 'ascending') : (column ? 'descending' : 'ascending');
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const valueOf = body => parseFloat(body.rows[0].cells[column].dataset.value);
    const bodies = [...table.tBodies].sort((one, other) => {
      const [a, b] = [valueOf(one), valueOf(other)];
      if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b); // rows without a number stay at the end
      return sign * (a - b);
    });
    bodies.forEach(body => table.insertBefore(body, table.tFoot));
  }));
}

// The values of a curve, under the pointer or the arrow keys.
for (const chart of document.querySelectorAll('.chart')) {
  const lines = JSON.parse(chart.dataset.lines);
  const hover = chart.parentElement.querySelector('.hover');
  const pointer = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  pointer.setAttribute('class', 'pointer');
  pointer.setAttribute('y1', 10);
  pointer.setAttribute('y2', 180);
  const [, , width] = chart.getAttribute('viewBox').split(' ').map(Number);
  const longest = lines.reduce((one, other) => (other.at.length > one.at.length ? other : one));
  const nearest = (line, x) => line.at.reduce((best, at, i) => (Math.abs(at - x) < Math.abs(line.at[best] - x) ? i : best), 0);
  let index = 0;
  const show = number => {
    index = Math.max(0, Math.min(longest.at.length - 1, number));
    const x = longest.at[index];
    pointer.setAttribute('x1', x);
    pointer.setAttribute('x2', x);
    chart.append(pointer);
    const parts = lines.map(line => line.name + ' ' + line.y[nearest(line, x)]);
    hover.textContent = '';
    for (const text of ['step ' + Math.round(longest.x[index]), ...parts]) {
      hover.append(Object.assign(document.createElement('div'), { textContent: text }));
    }
    hover.hidden = false;
    const share = x / width;
    hover.style.left = share < 0.5 ? 'calc(' + share * 100 + '% + 8px)' : 'auto';
    hover.style.right = share < 0.5 ? 'auto' : 'calc(' + (1 - share) * 100 + '% + 8px)';
  };
  const hide = () => {
    hover.hidden = true;
    pointer.remove();
  };
  chart.addEventListener('pointermove', event => {
    const box = chart.getBoundingClientRect();
    show(nearest(longest, (event.clientX - box.left) / box.width * width));
  });
  chart.addEventListener('pointerleave', hide);
  chart.addEventListener('focus', () => { if (chart.matches(':focus-visible')) show(longest.at.length - 1); });
  chart.addEventListener('blur', hide);
  chart.addEventListener('keydown', event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(index + step);
  });
}

// What a link leads to may be folded.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.tagName === 'DETAILS') part.open = true;
  target.scrollIntoView();
}
addEventListener('hashchange', unfold);
unfold();
