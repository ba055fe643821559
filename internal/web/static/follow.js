// A run's page that lives: the overview and the jobs as the server renders them,
// new lines of the open job's log, links to lines and ranges of them, matches to jump
// to. Text is only ever set as text.
"use strict";
(() => {
  const log = document.getElementById("log");
  const run = location.pathname.split("/")[2];
  const job = log ? log.dataset.job : "";

  // A click on a number links to the line, with shift to all from the last one.
  let first = 0;
  const lineOf = (n) => document.getElementById(`L${n}`);
  const pick = (from, to) => {
    for (const l of log.querySelectorAll(".marked, .picked")) l.classList.remove("marked", "picked");
    for (let n = from; n <= to && n < from + 5000; n++) { const l = lineOf(n); if (l) l.classList.add("picked"); }
  };
  if (log) {
    log.addEventListener("click", (e) => {
      const a = e.target.closest(".line > a");
      if (!a || e.ctrlKey || e.metaKey) return;
      e.preventDefault();
      const n = Number(a.textContent);
      const from = e.shiftKey && first ? Math.min(first, n) : n, to = e.shiftKey && first ? Math.max(first, n) : n;
      if (!e.shiftKey) first = n;
      const query = new URLSearchParams(location.search);
      query.set("job", job);
      query.delete("from");
      query.set("lines", from === to ? String(n) : `${from}-${to}`);
      history.replaceState(null, "", `?${query}#L${from}`);
      pick(from, to);
    });
    const marked = log.querySelector(".marked");
    if (marked) first = Number(marked.id.slice(1));
  }
  const reveal = () => {
    const at = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let d = at && at.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    if (at) at.scrollIntoView({ block: "center", behavior: "instant" });
  };
  window.addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  // n and N go through the matches on the page, then on to those beyond it.
  let now = -1;
  const jump = (by) => {
    const all = log ? [...log.querySelectorAll("mark")] : [];
    if (now >= 0 && all[now]) all[now].classList.remove("now");
    if (!all.length || now + by < 0 && by < 0 || now + by >= all.length) {
      const shown = all.length ? Number(all[by > 0 ? all.length - 1 : 0].closest(".line").id.slice(1)) : Number(log ? log.dataset.last : 0);
      const links = [...document.querySelectorAll(".hits li a")];
      const next = by > 0 ? links.find((a) => Number(a.textContent) > shown) : links.findLast((a) => Number(a.textContent) < shown);
      if (next) { location.assign(next.href); return; }
    }
    if (!all.length) return;
    now = (now + by + all.length) % all.length;
    for (let d = all[now].closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    all[now].classList.add("now");
    all[now].scrollIntoView({ block: "center" });
  };
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select")) return;
    if (e.key === "n") jump(1);
    if (e.key === "N") jump(-1);
    if (e.key === "f") toEnd();
  });

  // What is new is shown to whoever is at the end; others are told of it.
  const atEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 120;
  const toEnd = () => { window.scrollTo({ top: document.body.scrollHeight, behavior: "instant" }); told(0); };
  let unseen = 0, button = null;
  const told = (n) => {
    unseen = n;
    if (!n) { if (button) button.remove(); button = null; return; }
    if (!button) {
      button = document.createElement("button");
      button.id = "follow";
      button.addEventListener("click", toEnd);
      document.body.append(button);
    }
    button.textContent = `${n} new line${n === 1 ? "" : "s"} ↓`;
  };
  window.addEventListener("scroll", () => { if (unseen && atEnd()) told(0); }, { passive: true });

  if (log && log.dataset.done === "true") return;
  const lines = log ? log.querySelectorAll(".line") : [];
  const last = lines[lines.length - 1];
  let n = log ? Number(log.dataset.last) : 0;
  let part = log ? log.lastElementChild : null; // of a step
  let step = part ? Number(part.dataset.step) : 0;
  let fold = null; // the group that is open
  if (last && last.parentElement.open && (last.matches(".group") || last.closest(".fold"))) fold = last.closest(".fold");
  const times = log && log.dataset.times === "true";
  // Whoever reads what came earlier follows the jobs, not the log.
  const query = new URLSearchParams({ job, line: log && log.dataset.tail === "true" ? String(n) : "" });
  const source = new EventSource(`/runs/${run}/events?${query}`);
  // What is replaced keeps its focus and what was folded.
  const replace = (id, html) => {
    const box = document.getElementById(id);
    const folds = new Map([...box.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
    const held = box.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    box.innerHTML = html; // rendered and escaped by the server
    for (const d of box.querySelectorAll("details[id]")) if (folds.has(d.id)) d.open = folds.get(d.id);
    if (held) { const a = [...box.querySelectorAll("a")].find((x) => x.getAttribute("href") === held); if (a) a.focus({ preventScroll: true }); }
  };
  source.addEventListener("overview", (e) => {
    replace("overview", e.data);
    const state = document.getElementById("state").dataset.state;
    document.getElementById("icon").href = `/static/hearth-${state}.svg`;
  });
  source.addEventListener("board", (e) => {
    replace("board", e.data);
    if (!job && document.querySelector(".jobs > li.open")) location.reload(); // the first job appeared
  });
  const lineFrom = (l, tag) => {
    const div = document.createElement(tag);
    div.className = `line ${l.Group ? "group" : l.Stream}`;
    div.id = `L${l.N}`;
    // What folds holds nothing else that can be opened.
    const a = document.createElement(tag === "summary" ? "span" : "a");
    if (tag === "summary") a.className = "n"; else a.href = `?${new URLSearchParams({ job, lines: l.N })}#L${l.N}`;
    a.textContent = l.N;
    const span = document.createElement("span");
    span.textContent = l.Text;
    div.append(a);
    if (times) { const t = document.createElement("time"); t.textContent = l.T; div.append(t); }
    div.append(span);
    return div;
  };
  let kept = lines.length;
  source.addEventListener("log", (e) => {
    const near = atEnd();
    const got = JSON.parse(e.data).lines;
    for (const l of got) {
      if (!part || l.Step !== step) {
        step = l.Step;
        fold = null;
        part = document.createElement("details");
        part.className = "part";
        part.dataset.step = step;
        part.open = true;
        const h = document.createElement("summary");
        if (step) h.id = `step-${step}`;
        const name = document.querySelector(`.steps a[href="#step-${step}"]`);
        h.textContent = step ? `${step} ${name ? name.textContent : ""}` : "Set-up";
        part.append(h);
        log.append(part);
      }
      if (l.N > n + 1) {
        const p = document.createElement("p");
        p.className = "dim";
        p.textContent = `${l.N - n - 1} lines came too fast to show: see the plain text.`;
        part.append(p);
      }
      n = l.N;
      if (l.Group === "end") { if (fold) fold.open = false; fold = null; continue; }
      if (l.Group === "start") {
        fold = document.createElement("details");
        fold.className = "fold";
        fold.open = true;
        fold.append(lineFrom(l, "summary"));
        part.append(fold);
      } else {
        (fold || part).append(lineFrom(l, "div"));
      }
      kept++;
    }
    while (kept > 6000) { // a page is no place for a whole log
      const old = log.querySelector(".line");
      const home = old.parentElement;
      kept -= old.matches("summary") ? home.querySelectorAll(".line").length : 1;
      (old.matches("summary") ? home : old).remove();
      if (home.matches(".part") && home !== part && !home.querySelector(".line")) home.remove();
    }
    if (near) toEnd(); else told(unseen + got.length);
  });
  source.addEventListener("end", () => { source.close(); document.body.dataset.ended = "true"; });
  // A connection that was lost begins anew at the first offset: start over.
  source.onerror = () => { if (source.readyState === EventSource.CONNECTING) { source.close(); setTimeout(() => location.reload(), 3000); } };
})();
