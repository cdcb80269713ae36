"use strict";
// The page of zr_ray/report/gsb_page.py (mode "compare") and rating_page.py (mode "rate").
// A task shows one or two images and has rows; a row is a question with options. Answers: state.answers[task][row].
const at = id => document.getElementById(id);
const study = JSON.parse(at("study").textContent);
const slot = "zr_ray/rater/" + study.study;
const SIDES = [["left", "Left is better"], ["same", "Same"], ["right", "Right is better"]];
let state = { session: Array.from(crypto.getRandomValues(new Uint8Array(8)), b => b.toString(16).padStart(2, "0")).join(""),
              rater: "", answers: {}, task: "" };
try { state = Object.assign(state, JSON.parse(localStorage.getItem(slot) || "{}")); } catch (error) { /* private mode: nothing is kept */ }
let row = 0, zoomed = 1, drawn = null;

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function keep() {
  try { localStorage.setItem(slot, JSON.stringify(state)); }
  catch (error) { at("said").textContent = "This browser keeps nothing: export before you leave."; }
}
function answer(task, name) {
  const given = state.answers[task];
  return given && Object.hasOwn(given, name) ? given[name] : undefined;
}

// ---- tasks
function sides(keys) { return SIDES.map(([value, label], n) => ({ value, label, key: keys[n] })); }
function points(dimension) {
  const digits = dimension.points.every(point => /^\d$/.test(point.label));  // the score's own digit is its key
  return dimension.points.map((point, n) => ({ ...point, key: digits ? point.label : n < 9 ? String(n + 1) : "" }));
}
function compareTasks() {
  return study.items.map(item => ({
    id: item.id, prompt: item.prompt, images: [item.left, item.right],
    rows: study.dimensions.map(d => ({ name: d.name, title: d.title, question: d.question, options: sides("123") })),
  }));
}
function rateTasks() {
  const scored = study.items.map(item => ({
    id: item.id, prompt: item.prompt, images: [item.image],
    rows: study.dimensions.map(d => ({ name: d.name, title: d.title, question: d.question, options: points(d), list: true })),
  }));
  // Same prompt, same score: compared, for the half points. Ids are random, so their order gives random sides.
  const complete = scored.every(task => task.rows.every(r => answer(task.id, r.name) !== undefined));
  if (!complete) return scored;
  const pairs = [];
  for (const [n, a] of study.items.entries()) for (const b of study.items.slice(n + 1)) for (const d of study.dimensions) {
    const score = answer(a.id, d.name);
    if (a.prompt !== b.prompt || score !== answer(b.id, d.name) || !d.compared.includes(score)) continue;
    const [left, right] = a.id < b.id ? [a, b] : [b, a];
    const label = d.points.find(point => point.value === score).label;
    pairs.push({ id: [left.id, right.id, d.name].join("|"), prompt: a.prompt, images: [left.image, right.image],
                 pair: { dimension: d.name, left: left.id, right: right.id },
                 rows: [{ name: "vote", title: `Better in ${d.name}?`, question: `You gave both ${label}. ${d.question}`, options: sides("123") }] });
  }
  pairs.sort((a, b) => a.prompt < b.prompt ? -1 : a.prompt > b.prompt ? 1 : 0);
  return scored.concat(pairs);
}
const tasks = () => study.mode === "rate" ? rateTasks() : compareTasks();
const answered = task => task.rows.every(r => answer(task.id, r.name) !== undefined);
function now(all) { return Math.max(0, all.findIndex(task => task.id === state.task)); }

// ---- drawing
function show() {
  const all = tasks(), place = now(all), task = all[place], open = all.filter(t => !answered(t)).length;
  row = Math.min(row, task.rows.length - 1);
  at("prompt").replaceChildren(make("small", "Prompt"), document.createTextNode(task.prompt));
  at("task").className = task.images.length === 1 ? "one" : "two";
  at("task").style.setProperty("--below", (task.rows.length > 1 ? 270 + 54 * task.rows.length : 370) + "px");
  if (drawn !== task.id) at("pictures").replaceChildren(...task.images.map((source, n) => picture(source, n, task)));
  drawn = task.id;
  const current = answer(task.id, task.rows[row].name);
  for (const side of ["left", "right"]) at(side)?.classList.toggle("chosen", current === side);
  at("rows").replaceChildren(...task.rows.map((r, n) => question(task, r, n)));
  at("progress").max = all.length; at("progress").value = all.length - open;
  const what = study.mode === "compare" ? "Pair" : task.pair ? "Comparison" : "Image";
  const kind = all.filter(t => !!t.pair === !!task.pair);
  at("count").textContent = `${what} ${kind.indexOf(task) + 1} of ${kind.length}, ${open} open`;
  at("done").hidden = open > 0;
  at("rater").value = state.rater;
  at("back").disabled = place === 0; at("next").disabled = place === all.length - 1;
  zoom(zoomed);
}
function picture(source, n, task) {
  const side = ["left", "right"][n], frame = make("button", undefined, "picture"), image = make("img", undefined, "pixels");
  frame.type = "button";
  image.onload = () => image.classList.toggle("pixels", image.naturalWidth < 384);  // small ones would be blurred
  image.src = source;
  image.alt = task.images.length === 1 ? "the image" : `${side} image`;
  if (task.images.length === 2) {
    frame.id = side;
    frame.onclick = () => give(side);
  } else frame.onclick = () => zoom(zoomed === 4 ? 1 : zoomed * 2);
  frame.onpointermove = event => {
    const box = frame.getBoundingClientRect();
    for (const other of document.querySelectorAll(".picture")) {
      other.style.setProperty("--x", 100 * (event.clientX - box.left) / box.width + "%");
      other.style.setProperty("--y", 100 * (event.clientY - box.top) / box.height + "%");
    }
  };
  frame.append(image);
  return frame;
}
function question(task, r, n) {
  const flat = !r.list && task.rows.length > 1;
  const box = make("section", undefined, "row" + (n === row ? " active" : "") + (flat ? " flat" : ""));
  const title = make("h2", r.title[0].toUpperCase() + r.title.slice(1));
  const given = answer(task.id, r.name), chosen = r.options.find(o => o.value === given);
  if (chosen && r.list) title.append(make("span", "\u2713 " + chosen.label));
  box.append(title);
  if (r.question) box.append(make("p", r.question, task.rows.length > 1 ? "detail" : ""));
  box.onclick = event => { if (n !== row && !event.target.closest(".options button")) { row = n; show(); } };
  if (r.list && n !== row) return box;
  const list = r.list && r.options.some(o => o.text);
  const options = make("div", undefined, "options" + (list ? " list" : ""));
  for (const o of r.options) {
    const button = make("button", undefined, o.value === given ? "chosen" : "");
    if (o.key) button.append(make("kbd", o.key), " ");
    button.append(list ? (o.key === o.label ? o.text || "" : [o.label, o.text].filter(Boolean).join(": ")) : o.key === o.label ? "" : o.label);
    button.dataset.value = o.value;
    button.onclick = () => { row = n; give(o.value); };
    options.append(button);
  }
  box.append(options);
  return box;
}
function zoom(factor) {
  zoomed = factor;
  for (const frame of document.querySelectorAll(".picture")) {
    frame.style.setProperty("--zoom", factor); frame.classList.toggle("zoomed", factor > 1 || frame.id === "");
  }
}

// ---- acting
function go(steps) {
  const all = tasks(), place = now(all) + steps;
  if (place >= 0 && place < all.length) { state.task = all[place].id; row = 0; keep(); show(); }
}
function goOpen() {
  const all = tasks(), place = now(all), found = [...all.slice(place + 1), ...all.slice(0, place + 1)].find(t => !answered(t));
  if (!found) return;
  state.task = found.id;
  row = Math.max(0, found.rows.findIndex(r => answer(found.id, r.name) === undefined));
  keep(); show();
}
function give(value) {
  const all = tasks(), place = now(all), task = all[place], wasOpen = !answered(task);
  (state.answers[task.id] ||= {})[task.rows[row].name] = value;
  const open = task.rows.findIndex(r => answer(task.id, r.name) === undefined);
  if (row + 1 < task.rows.length) row = wasOpen && open >= 0 && answer(task.id, task.rows[row + 1].name) !== undefined ? open : row + 1;
  else if (open >= 0) row = open;
  else {
    const after = tasks();  // the last score may have brought comparisons
    state.task = after[Math.min(place + 1, after.length - 1)].id; row = 0;
  }
  keep(); show();
}
function exported() {
  const head = { format: study.format, study: study.study, session: state.session, rater: state.rater.trim() || "anonymous" };
  const given = tasks().filter(task => state.answers[task.id]);
  if (study.mode === "compare") return { ...head, votes: Object.fromEntries(given.map(task => [task.id, state.answers[task.id]])) };
  return { ...head,
    scores: Object.fromEntries(given.filter(task => !task.pair).map(task => [task.id, state.answers[task.id]])),
    comparisons: given.filter(task => task.pair && answered(task)).map(task => ({ ...task.pair, vote: answer(task.id, "vote") })) };
}
at("save").onclick = () => {
  const held = exported(), link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(held, null, 1)], { type: "application/json" }));
  link.download = `${study.mode === "rate" ? "ratings" : "votes"}-${study.study}-${held.rater.replace(/[^\w-]+/g, "_")}.json`;
  link.click();
  at("said").textContent = `Written to your downloads as ${link.download}. Send this file back.`;
};
at("load").onchange = async event => {
  try {
    const held = JSON.parse(await event.target.files[0].text());
    if (held.study !== study.study || held.format !== study.format) throw new Error("these answers belong to another page");
    const answers = { ...(held.votes || held.scores) };
    for (const one of held.comparisons || []) answers[[one.left, one.right, one.dimension].join("|")] = { vote: one.vote };
    for (const [id, given] of Object.entries(answers)) state.answers[id] = { ...given, ...state.answers[id] };
    state.session = held.session; state.rater = state.rater || held.rater;
    keep(); show(); goOpen();
    at("said").textContent = "Resumed from the file.";
  } catch (error) { at("said").textContent = "Not resumed: " + error.message; }
  event.target.value = "";
};
at("back").onclick = () => go(-1); at("next").onclick = () => go(1); at("open").onclick = goOpen;
at("zoom").onclick = () => zoom(zoomed === 4 ? 1 : zoomed * 2);
at("rater").oninput = event => { state.rater = event.target.value; keep(); };
document.addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const all = tasks(), task = all[now(all)], option = task.rows[row].options.find(o => o.key === event.key);
  if (option) give(option.value);
  else if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    if (task.rows.length === 1) return;
    row = Math.max(0, Math.min(task.rows.length - 1, row + (event.key === "ArrowUp" ? -1 : 1))); show();
  }
  else if (event.key === "n") goOpen();
  else if (event.key === "z") zoom(zoomed === 4 ? 1 : zoomed * 2);
  else return;
  event.preventDefault();
});
for (const line of study.how) {
  const item = make("li");
  for (const [n, part] of line.split(/\[(.)\]/).entries()) item.append(n % 2 ? make("kbd", part) : part);
  at("how").append(item);
}
show();
