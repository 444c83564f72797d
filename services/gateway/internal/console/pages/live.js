"use strict";
// Tells the page of a run what is new: values, and which charts to load again.
(() => {
  const charts = document.getElementById("charts");
  const state = document.getElementById("state");
  if (!charts || !charts.dataset.live) return;
  const find = (key) => Array.from(charts.children).find((f) => f.dataset.key === key);
  const add = (key) => {
    const figure = document.createElement("figure");
    figure.dataset.key = key;
    const caption = document.createElement("figcaption");
    const value = document.createElement("span");
    const step = document.createElement("span");
    value.className = "value";
    step.className = "step";
    caption.append(key + " ", value, " at step ", step);
    const image = document.createElement("img");
    image.alt = key + " by step";
    figure.append(caption, image);
    charts.append(figure);
    return figure;
  };
  let version = 0;
  const source = new EventSource(charts.dataset.live);
  source.onmessage = (event) => {
    const news = JSON.parse(event.data);
    if (news.state) state.textContent = news.state;
    version++;
    for (const m of news.metrics || []) {
      let figure = find(m.key);
      if (!figure) {
        if (charts.children.length >= 12) continue;
        figure = add(m.key);
      }
      figure.querySelector(".value").textContent = m.value;
      figure.querySelector(".step").textContent = m.step;
      figure.querySelector("img").src = charts.dataset.chart + "?key=" + encodeURIComponent(m.key) + "&v=" + version;
    }
    if (news.ended) source.close();
  };
})();
