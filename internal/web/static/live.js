// The list of runs lives: its rows as the server renders them, its times as they
// pass, and the browser's tab shows how the newest run is.
"use strict";
(() => {
  const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"} ago`;
  const ago = () => {
    for (const t of document.querySelectorAll("time[data-ago]")) {
      const d = (Date.now() - Date.parse(t.dateTime)) / 1000;
      if (d < 45) t.textContent = "just now";
      else if (d < 3600) t.textContent = plural(Math.max(Math.floor(d / 60 + 0.5), 1), "minute");
      else if (d < 86400) t.textContent = plural(Math.floor(d / 3600), "hour");
      else if (d < 7 * 86400) t.textContent = plural(Math.floor(d / 86400), "day");
    }
  };
  setInterval(ago, 20000);
  // A page with something under way that has no stream is fetched anew.
  const main = document.getElementById("main");
  const again = async () => {
    if (main.dataset.refresh === undefined) return;
    if (!document.hidden && !main.contains(document.activeElement)) {
      const r = await fetch(location.href).catch(() => null);
      const fresh = r && r.ok && new DOMParser().parseFromString(await r.text(), "text/html").getElementById("main");
      if (fresh) {
        main.replaceChildren(...fresh.childNodes);
        if (fresh.dataset.refresh === undefined) delete main.dataset.refresh;
      }
    }
    setTimeout(again, 5000);
  };
  if (!document.querySelector("[data-live]")) setTimeout(again, 5000);
  const rows = document.getElementById("runs");
  if (!rows || rows.dataset.live === undefined) return;
  const source = new EventSource(`/runs/events?${rows.dataset.live}`);
  source.addEventListener("runs", (e) => {
    const held = rows.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    rows.innerHTML = e.data; // rendered and escaped by the server
    if (held) { const a = [...rows.querySelectorAll("a")].find((x) => x.getAttribute("href") === held); if (a) a.focus({ preventScroll: true }); }
    const state = rows.querySelector("[data-state]");
    if (state) document.getElementById("icon").href = `/static/hearth-${state.dataset.state}.svg`;
  });
})();
