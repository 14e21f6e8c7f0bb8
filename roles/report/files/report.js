// Copyright (c) contributors to the remotefs.storage collection
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
"use strict";
(() => {
  // Everything is put into the page as text, never as markup: names on a share can be anything.
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 100;
  const at = (id) => document.getElementById(id);
  const written = Date.parse(data.written);

  function make(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function size(bytes) {
    if (bytes === null || bytes === undefined) return "?";
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let value = bytes, unit = 0;
    while (value >= 1023.5 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${Number(value.toFixed(1))} ${units[unit]}`;
  }

  function count(number, one, many) { return `${number} ${number === 1 ? one : many}`; }

  // A length of time in seconds, in the largest unit of which there is one.
  function span(seconds) {
    for (const [length, one, many] of [[86400, "day", "days"], [3600, "hour", "hours"], [60, "minute", "minutes"]]) {
      if (seconds >= length) return count(Math.floor(seconds / length), one, many);
    }
    return count(Math.floor(seconds), "second", "seconds");
  }

  function age(taken) {
    const seconds = (written - Date.parse(taken)) / 1000;
    return seconds >= 0 ? `${span(seconds)} old` : taken || "";
  }

  function told(time) { return time.replace("T", " ").replace("Z", " UTC"); }

  function bar(part, whole, label, full) {
    const made = make("div", undefined, full ? "bar full" : "bar");
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", label);
    const inner = make("span");
    inner.style.setProperty("width", `${whole > 0 ? Math.min(100, (100 * part) / whole) : 0}%`);
    made.append(inner);
    return made;
  }

  // A list of which only the beginning is in the page: a browser becomes slow with ten thousand rows.
  function paged(items, place, button, row) {
    let shown = 0;
    function more() {
      const first = shown;
      const rows = items.slice(shown, shown + PAGE).map(row);
      shown += rows.length;
      place.append(...rows);
      button.hidden = shown >= items.length;
      if (first > 0 && rows.length) {
        const target = rows[0].querySelector("button") || rows[0];
        if (target === rows[0]) target.tabIndex = -1;
        target.focus();
      }
    }
    place.replaceChildren();
    button.onclick = more;
    more();
  }

  // -- what deserves a look

  function warning(one) {
    const row = make("li", undefined, one.level);
    row.append(make("span", one.level === "bad" ? "Act: " : "Look: ", "level"));
    const where = [one.share, one.volume].filter(Boolean).join(", ");
    row.append(document.createTextNode(`${where}: ${one.text}`));
    return row;
  }

  if (data.warnings.length) paged(data.warnings, at("warnings"), at("more-warnings"), warning);
  else at("warnings").append(make("li", "Nothing.", "none"));

  // -- shares

  function share(one) {
    const row = make("li");
    row.append(make("h3", one.src));
    if (one.error_code) { row.append(make("p", one.msg || one.error_code)); return row; }
    const used = one.total - one.free;
    row.append(bar(used, one.total, `${size(used)} of ${size(one.total)} are used`, one.free * 100 < one.total * data.policy.percent_free));
    row.append(make("p", `${size(one.free)} of ${size(one.total)} are free (${one.fstype})`));
    if (one.contents_error) { row.append(make("p", one.contents_error)); return row; }
    row.append(make("p", `Volumes promise ${size(one.virtual)}, snapshots hold ${size(one.held_by_snapshots)} at most`, "soft"));
    row.append(make("p", `${count(one.leftovers.length, "leftover", "leftovers")} (${size(one.leftovers_allocated)}), ${count(one.unknown.length, "name", "names")} that nobody knows`, "soft"));
    if (one.maintenance) row.append(make("p", "In maintenance: no new volumes are placed here"));
    return row;
  }

  at("shares").append(...data.shares.map(share));

  // -- volumes

  for (const one of data.volumes) {
    one.files = one.chain.length;
    one.newest = one.snapshots.reduce((newest, point) => (point.created && point.created > newest ? point.created : newest), "");
    const labels = Object.entries(one.labels || {}).map(([name, value]) => `${name}=${value}`);
    one.words = [one.name, one.share, one.description, ...labels, ...one.snapshots.map((point) => point.name)].join("\n").toLowerCase();
  }

  function volume(one) {
    const row = make("tr");
    const name = make("th");
    name.scope = "row";
    const open = make("button", one.name);
    open.type = "button";
    open.onclick = () => detail(one, open);
    name.append(open);
    row.append(name, make("td", one.share));
    if (one.error_code) {
      const problem = make("td", one.msg || one.error_code);
      problem.colSpan = 5;
      row.append(problem);
      return row;
    }
    for (const text of [size(one.size), size(one.allocated), one.files, one.snapshots.length]) row.append(make("td", text, "number"));
    row.append(make("td", one.newest ? age(one.newest) : ""));
    return row;
  }

  function sorted(found, key) {
    const order = { name: (a, b) => (a.name < b.name ? -1 : 1), newest: (a, b) => (a.newest < b.newest ? -1 : 1) };
    return found.slice().sort(order[key] || ((a, b) => (b[key] || 0) - (a[key] || 0)));
  }

  function filter() {
    const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.volumes.filter((one) => words.every((word) => one.words.includes(word)));
    at("count").textContent = `${found.length} of ${count(data.volumes.length, "volume", "volumes")}`;
    paged(sorted(found, at("sort").value), at("volumes"), at("more-volumes"), volume);
  }

  at("filter").addEventListener("input", filter);
  at("sort").addEventListener("change", filter);
  filter();

  // -- one volume: its chain, the active image on top

  let opener = null; // the button to which the focus goes back

  function close() {
    at("detail").hidden = true;
    (opener && opener.isConnected ? opener : at("filter")).focus();
  }

  at("close").onclick = close;
  at("detail").addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

  function detail(one, button) {
    opener = button;
    at("volume-heading").textContent = one.name;
    const place = at("chain");
    place.replaceChildren();
    if (one.error_code) place.append(make("p", one.msg || one.error_code));
    else {
      const parts = [one.share, `${size(one.size)}, ${size(one.allocated)} on disk`, one.created ? `made ${told(one.created)}` : "", one.description || ""];
      place.append(make("p", parts.filter(Boolean).join(" · "), "soft"));
      const most = Math.max(1, ...one.chain.map((image) => image.allocated || 0));
      const list = make("ol", undefined, "chain");
      one.chain.forEach((image, number) => {
        const row = make("li");
        const place = [number === 0 ? "active" : "", number === one.chain.length - 1 ? "base" : ""].filter(Boolean).join(", ");
        row.append(make("span", image.file, "file"), document.createTextNode(` ${image.format || "?"}, ${size(image.allocated)}${place ? `, ${place}` : ""}`));
        row.append(bar(image.allocated || 0, most, `${size(image.allocated)} on disk`, false));
        for (const point of one.snapshots.filter((point) => point.file === image.file)) {
          const marks = [point.created ? age(point.created) : "", point.protected ? "protected" : "", point.expires ? `expires ${told(point.expires)}` : ""];
          row.append(make("div", [`snapshot ${point.name}`, ...marks, point.description || ""].filter(Boolean).join(", "), "point"));
        }
        list.append(row);
      });
      place.append(list);
      if (one.parent) place.append(make("p", `It rests on ${one.parent.snapshot || "the present"} of ${one.parent.volume}.`));
    }
    at("detail").hidden = false;
    at("volume-heading").focus();
  }

  // -- clones

  const children = new Map();
  for (const one of data.volumes) {
    if (!one.parent) continue;
    const key = `${one.share}\n${one.parent.volume}`;
    if (!children.has(key)) children.set(key, []);
    children.get(key).push(one);
  }
  const roots = data.volumes.filter((one) => !one.parent && children.has(`${one.share}\n${one.name}`));

  function branch(one, seen) {
    const row = make("li", one.parent ? `${one.name} (on ${one.parent.snapshot || "the present"})` : `${one.name}, ${one.share}`);
    const key = `${one.share}\n${one.name}`;
    const below = seen.has(key) ? [] : children.get(key) || [];
    if (below.length) {
      const flat = below.every((child) => !children.has(`${child.share}\n${child.name}`));
      const list = make("ul", undefined, flat && below.length > 10 ? "many" : "");
      const rest = below.length - PAGE;
      list.append(...below.slice(0, PAGE).map((child) => branch(child, new Set([...seen, key]))));
      if (rest > 0) list.append(make("li", `and ${rest} more`));
      row.append(list);
    }
    return row;
  }

  if (roots.length) {
    at("clone-section").hidden = false;
    paged(roots, at("clones"), at("more-clones"), (one) => branch(one, new Set()));
  }

  // -- replicas, those that are furthest behind first

  function replica(one) {
    const lag = one.lag === null ? "how far it is behind is not known: its source, or when points were taken, is not in this report" : one.lag > 0 ? `${span(one.lag)} behind its source` : "as new as its source";
    const row = make("li");
    row.append(make("span", one.name, "file"), document.createTextNode(`, ${one.share}: ${lag}`));
    return row;
  }

  const replicas = data.volumes.filter((one) => one.replica).sort((a, b) => (b.lag || 0) - (a.lag || 0));
  if (replicas.length) {
    at("replica-section").hidden = false;
    paged(replicas, at("replicas"), at("more-replicas"), replica);
  }

  // -- leases

  // What facts a share, a volume or a lease has, each with its name.
  function facts(pairs) {
    const list = make("dl", undefined, "facts");
    for (const [name, value] of pairs) {
      if (!value) continue;
      const pair = make("div");
      pair.append(make("dt", name), make("dd", value));
      list.append(pair);
    }
    return list;
  }

  function listed(names, most) {
    const rest = names.length > most ? ` and ${names.length - most} more` : "";
    return `${names.length}: ${names.slice(0, most).join(", ")}${rest}`;
  }

  function ending(one) {
    if (!one.expires) return "never";
    const over = Date.parse(one.expires) < written;
    return `${told(one.expires)}, ${over ? `ended ${span((written - Date.parse(one.expires)) / 1000)} ago` : `in ${span((Date.parse(one.expires) - written) / 1000)}`}`;
  }

  function lease(one) {
    const row = make("li");
    row.append(make("h3", `${one.workers ? "Environment" : "Lease"} ${one.name}`));
    if (one.error_code) { row.append(make("p", one.msg || one.error_code)); return row; }
    const over = one.expires && Date.parse(one.expires) < written;
    if (over) row.classList.add("over");
    const missing = (one.volumes || []).length - one.made.length;
    row.append(facts([
      ["Share", one.share],
      ["Owner", one.owner],
      ["Held since", one.acquired ? told(one.acquired) : ""],
      [over ? "Ended" : "Ends", ending(one)],
      ["Collected by", one.collector],
      ["Workers", one.workers],
      ["Golden volume", one.golden.map((source) => (source.snapshot ? `${source.volume}, snapshot ${source.snapshot}` : source.volume)).join("; ")],
      ["Volumes", one.made.length ? listed(one.made, 20) : "none"],
      ["Listed, not made", missing > 0 ? missing : ""],
    ]));
    return row;
  }

  if (data.leases.length) {
    at("lease-section").hidden = false;
    paged(data.leases, at("leases"), at("more-leases"), lease);
  }

  at("written").textContent = told(data.written);
  at("written").dateTime = data.written;
})();
