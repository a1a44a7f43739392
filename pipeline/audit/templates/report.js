"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const all = (selector) => [...document.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);

  // What the reader has chosen lives in the address, so that a link shows the same page to others.
  const state = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const remember = (name, value) => {
    value === "" || value === null ? state.delete(name) : state.set(name, value);
    history.replaceState(null, "", "#" + state);
  };

  // Maps: a letter a cell, coloured here so that colours can be changed.
  const rgb = (name, value) => {
    const stops = data.colors[name], place = value * (stops.length - 1), first = Math.min(Math.floor(place), stops.length - 2);
    return stops[first].map((start, k) => start + (place - first) * (stops[first + 1][k] - start));
  };
  const colors = () => (byId("colors") ? byId("colors").value : "inferno");
  const canvasOf = (width, height, color) => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
    for (let cell = 0; cell < width * height; cell++) pixels.data.set(color(cell), 4 * cell);
    context.putImageData(pixels, 0, 0);
    return canvas;
  };
  const paint = (image) => {
    if (image.dataset.cells) {
      const color = (cell) => [...rgb(colors(), letters.indexOf(image.dataset.cells[cell]) / 63), 255];
      image.src = canvasOf(+image.dataset.width, +image.dataset.height, color).toDataURL();
      return;
    }
    // A layer's opacity is its value, at most 85 %: read it once, from the picture as it came.
    if (!image.levels) {
      const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
      image.levels = { width: canvas.width, height: canvas.height, alpha: pixels.filter((_, k) => k % 4 === 3) };
    }
    const { width, height, alpha } = image.levels;
    image.src = canvasOf(width, height, (cell) => [...rgb(colors(), alpha[cell] / 217), alpha[cell]]).toDataURL();
  };

  // Attention over the photographs.
  const show = () => {
    document.body.classList.toggle("bare", !byId("attention").checked);
    document.body.style.setProperty("--strength", byId("strength").value / 100);
  };
  if (byId("attention")) {
    byId("attention").checked = state.get("attention") !== "off";
    byId("strength").value = state.get("strength") ?? 100;
    if (state.get("colors") in data.colors) byId("colors").value = state.get("colors");
    if (colors() !== "inferno") all("img.cells").forEach((image) => image.decode().then(() => paint(image), () => {}));
    show();
    byId("attention").addEventListener("change", (event) => {
      remember("attention", event.target.checked ? "" : "off");
      all(".frame").forEach((frame) => frame.setAttribute("aria-pressed", "true"));
      show();
    });
    byId("strength").addEventListener("input", (event) => (remember("strength", event.target.value === "100" ? "" : event.target.value), show()));
    byId("colors").addEventListener("change", (event) => {
      remember("colors", event.target.value === "inferno" ? "" : event.target.value);
      all("img.cells").forEach(paint);
      if (byId("table")) fill();
    });
  }
  document.addEventListener("click", (event) => {
    const frame = event.target.closest(".frame");
    if (frame) frame.setAttribute("aria-pressed", String(frame.getAttribute("aria-pressed") !== "true"));
  });

  // Findings: by severity.
  const filterFindings = () => {
    const wanted = state.get("severity");
    all(".chip").forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.filter === wanted)));
    all(".card, .line").forEach((card) => (card.hidden = Boolean(wanted) && card.dataset.severity !== wanted));
  };
  all(".chip").forEach((chip) =>
    chip.addEventListener("click", () => {
      remember("severity", state.get("severity") === chip.dataset.filter ? "" : chip.dataset.filter);
      filterFindings();
    }),
  );
  filterFindings();

  // Classes: a table of as many rows as were asked for, in the order that was asked for.
  const step = 200, table = byId("table"), classes = data.classes;
  let limit = step;
  const percent = (share) => (share === null ? "–" : (100 * share).toFixed(share === 0 || share === 1 || (share > 0.1 && share < 0.995) ? 0 : 1) + " %");
  const gravity = (row) => classes.found[row].reduce((sum, count) => sum * 1000 + Math.min(count, 999), 0);
  const value = (row, column) => (column === "found" ? gravity(row) : classes[column][row]);
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  const chosen = () => {
    const text = (state.get("q") ?? "").toLowerCase(), sort = state.get("sort") ?? "-found";
    const column = sort.replace("-", ""), sign = sort.startsWith("-") ? -1 : 1;
    return classes.index
      .map((_, row) => row)
      .filter((row) => classes.name[row].toLowerCase().includes(text) || String(classes.index[row]) === text)
      .filter((row) => state.get("found") !== "yes" || gravity(row) > 0)
      .sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (x === null || y === null) return (x === null) - (y === null) || a - b;  // what is unknown comes last, either way
        return sign * compare(x, y) || a - b;
      });
  };
  const cell = (row, content, kind = "") => {
    const made = document.createElement("td");
    made.className = kind;
    made.append(content);
    row.append(made);
    return made;
  };
  const named = (k) => {
    const name = document.createElement("bdi");
    name.textContent = classes.name[k];
    if (!classes.page[k]) return name;
    const link = document.createElement("a");
    link.href = classes.page[k];
    link.append(name);
    return link;
  };
  const found = (k) => {
    const shown = document.createElement("span");
    ["error", "warning", "info"].forEach((severity, place) => {
      const count = classes.found[k][place];
      if (!count) return;
      const tag = document.createElement("span");
      tag.className = "tag " + severity;
      tag.title = count + " " + severity;
      tag.textContent = "◆▲●"[place] + (count > 1 ? " " + count : "") + " ";
      shown.append(tag);
    });
    return shown;
  };
  const smallMap = (k) => {
    if (!classes.cells[k]) return "";
    const [height, width] = classes.shape;
    const canvas = canvasOf(width, height, (c) => [...rgb(colors(), letters.indexOf(classes.cells[k][c]) / 63), 255]);
    canvas.className = "small-map";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", classes.place[k] ? "most maps peak at " + classes.place[k] : "no map");
    return canvas;
  };
  const fill = () => {
    const rows = chosen(), sort = state.get("sort") ?? "-found";
    const body = document.createElement("tbody");
    rows.slice(0, limit).forEach((k) => {
      const row = document.createElement("tr");
      cell(row, named(k));
      cell(row, smallMap(k));
      cell(row, found(k));
      cell(row, classes.n[k].toLocaleString("en"), "num");
      cell(row, percent(classes.accuracy[k]), "num");
      cell(row, classes.confidence[k] === null ? "–" : classes.confidence[k].toFixed(2), "num more");
      cell(row, classes.place[k] === null ? "–" : percent(classes.share[k]) + " " + classes.place[k], "more");
      cell(row, percent(classes.area[k]), "num more");
      cell(row, percent(classes.empty[k]), "num more");
      body.append(row);
    });
    table.tBodies[0].replaceWith(body);
    byId("count").textContent = rows.length === classes.index.length ? `${rows.length} classes` : `${rows.length} of ${classes.index.length} classes`;
    byId("more-rows").hidden = rows.length <= limit;
    all("#table th").forEach((head) => {
      const button = head.querySelector("button");
      if (button && button.dataset.sort === sort.replace("-", "")) head.setAttribute("aria-sort", sort.startsWith("-") ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  // A cell that begins like a formula would be computed by a spreadsheet.
  const quoted = (text) => '"' + String(text ?? "").replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""') + '"';
  if (table) {
    byId("search").value = state.get("q") ?? "";
    byId("found").checked = state.get("found") === "yes";
    all("[data-sort]").forEach((button) =>
      button.addEventListener("click", () => {
        const column = button.dataset.sort, now = state.get("sort") ?? "-found";
        const first = column === "name" || column === "accuracy" || column === "confidence" ? column : "-" + column;
        remember("sort", now === first ? (first.startsWith("-") ? column : "-" + column) : first);
        fill();
      }),
    );
    byId("search").addEventListener("input", (event) => (remember("q", event.target.value), (limit = step), fill()));
    byId("found").addEventListener("change", (event) => (remember("found", event.target.checked ? "yes" : ""), (limit = step), fill()));
    byId("more-rows").addEventListener("click", () => ((limit += step), fill()));
    byId("csv").addEventListener("click", (event) => {
      const columns = ["index", "name", "n", "accuracy", "confidence", "empty", "area", "place", "share"];
      const lines = [columns, ...chosen().map((k) => columns.map((column) => classes[column][k]))].map((line) => line.map(quoted).join(","));
      event.currentTarget.href = "data:text/csv;charset=utf-8," + encodeURIComponent(lines.join("\r\n") + "\r\n");
    });
    fill();
  }

  // Keys, as long as nothing is being typed.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input[type=search], select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const cards = all(".card:not([hidden])"), place = cards.indexOf(document.activeElement.closest(".card"));
    const next = { j: cards[Math.min(place + 1, cards.length - 1)], k: cards[Math.max(place - 1, 0)] }[event.key];
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "start" });
    } else if (event.key === "/" && byId("search")) {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "o" && byId("attention")) byId("attention").click();
  });
})();
