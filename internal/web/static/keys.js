// Keys on every page: j and k go through what can be opened, / searches, g and a
// letter goes to a page, ? says all of them. None of it is needed.
"use strict";
(() => {
  const hint = document.querySelector(".keyhint");
  if (hint) hint.hidden = false;
  const places = { r: "/", e: "/events" };
  for (const a of document.querySelectorAll("header nav a[data-key]")) places[a.dataset.key] = a.getAttribute("href");
  const keys = [["j / k", "next, one before"], ["Enter", "open it"], ["/", "search"], ["n / N", "next match, one before"], ["f", "follow the log"],
    ["g r", "runs"], ["g e", "events"], ["?", "these keys"], ["Esc", "close"]];
  for (const a of document.querySelectorAll("header nav a[data-key]")) if (!keys.some((k) => k[0] === `g ${a.dataset.key}`)) keys.splice(-2, 0, [`g ${a.dataset.key}`, a.textContent.toLowerCase()]);
  let going = 0;
  const stops = () => [...document.querySelectorAll(".jobs > li > a, .runs tbody a.run-link, .stop, .hits li a")].filter((e) => e.offsetParent !== null);
  const walk = (by) => {
    const all = stops();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement);
    const next = all[Math.min(Math.max(at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by, 0), all.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  const help = () => {
    let d = document.getElementById("keys");
    if (!d) {
      d = document.createElement("dialog");
      d.id = "keys";
      d.setAttribute("aria-label", "Keys");
      const h = document.createElement("h2");
      h.textContent = "Keys";
      const list = document.createElement("dl");
      for (const [k, what] of keys) {
        const dt = document.createElement("dt"), dd = document.createElement("dd"), key = document.createElement("kbd");
        key.textContent = k;
        dt.append(key);
        dd.textContent = what;
        list.append(dt, dd);
      }
      const f = document.createElement("form"), b = document.createElement("button");
      f.method = "dialog";
      b.textContent = "Close";
      f.append(b);
      d.append(h, list, f);
      document.body.append(d);
    }
    if (d.open) d.close(); else d.showModal();
  };
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select")) {
      if (e.key === "Escape" && e.target.closest("input")) e.target.blur();
      return;
    }
    if (going && Date.now() - going < 1500) {
      going = 0;
      if (places[e.key]) { e.preventDefault(); location.assign(places[e.key]); return; }
    }
    switch (e.key) {
    case "j": walk(1); break;
    case "k": walk(-1); break;
    case "g": going = Date.now(); break;
    case "?": help(); break;
    case "/": {
      const f = document.querySelector("input[type=search]");
      if (f) { e.preventDefault(); f.focus(); f.select(); }
      break;
    }
    }
  });
})();
