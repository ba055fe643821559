// Follows a run that is under way: the board as rendered by the server, and new
// lines of the open job's log. Text is only ever set as text.
"use strict";
(() => {
  const log = document.getElementById("log");
  const run = location.pathname.split("/")[2];
  if (log && log.dataset.done === "true") return;
  let job = log ? log.dataset.job : "";
  const lines = log ? log.querySelectorAll(".line") : [];
  const last = lines[lines.length - 1];
  let n = log ? Number(log.dataset.last) : 0;
  let step = last ? Number(last.dataset.step) : 0;
  // Whoever reads what came earlier follows the jobs, not the log.
  const query = new URLSearchParams({ job, line: log && log.dataset.tail === "true" ? String(n) : "" });
  const source = new EventSource(`/runs/${run}/events?${query}`);
  source.addEventListener("board", (e) => {
    document.getElementById("board").innerHTML = e.data; // rendered and escaped by the server
    if (!job && document.querySelector(".jobs > li.open")) location.reload(); // the first job appeared
  });
  source.addEventListener("log", (e) => {
    const near = window.innerHeight + window.scrollY > document.body.scrollHeight - 120;
    for (const l of JSON.parse(e.data).lines) {
      if (l.Step !== step) {
        step = l.Step;
        const h = document.createElement("h3");
        h.id = `step-${step}`;
        const name = document.querySelector(`.steps a[href="#step-${step}"]`);
        h.textContent = `${step} ${name ? name.textContent : ""}`;
        if (step) log.append(h);
      }
      if (l.N > n + 1) {
        const p = document.createElement("p");
        p.className = "dim";
        p.textContent = `${l.N - n - 1} lines came too fast to show: see the plain text.`;
        log.append(p);
      }
      n = l.N;
      const div = document.createElement("div");
      div.className = `line ${l.Stream}${l.Group ? " group" : ""}`;
      div.id = `L${l.N}`;
      const a = document.createElement("a");
      a.href = `#L${l.N}`;
      a.textContent = l.N;
      const span = document.createElement("span");
      span.textContent = l.Text;
      div.append(a, span);
      log.append(div);
      if (log.childElementCount > 6000) log.firstElementChild.remove();
    }
    if (near) window.scrollTo(0, document.body.scrollHeight);
  });
  source.addEventListener("end", () => { source.close(); document.body.dataset.ended = "true"; });
  // A connection that was lost begins anew at the first offset: start over.
  source.onerror = () => { if (source.readyState === EventSource.CONNECTING) { source.close(); setTimeout(() => location.reload(), 3000); } };
})();
