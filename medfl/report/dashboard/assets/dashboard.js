"use strict";
// Puts the server's fragments in place as they change. Everything is drawn by the server; without this file the page
// is complete and loads itself again.
(() => {
  const main = document.getElementById("main");
  const news = document.getElementById("news");
  const link = document.getElementById("link");
  const pause = document.getElementById("pause");
  const SILENCE = 40000; // ms without even a heartbeat: the connection is dead, whatever the browser believes
  const RETRY = 5000;
  let source = null;
  let timer = 0;
  let ended = main.dataset.over === "true";

  // Changes `old` into `fresh` in place, so that focus, scrolling and opened details stay as the reader left them.
  function morph(old, fresh) {
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      const mine = old.nodeName === "DETAILS" && name === "open";
      if (!mine && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    children(old, fresh);
  }

  function children(old, fresh) {
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      if (wanted.id) {
        const known = [...old.children].find((child) => child.id === wanted.id);
        if (known && known !== place) {
          old.insertBefore(known, place);
          place = known;
        } else if (!known) {
          old.insertBefore(wanted, place);
          continue;
        }
      }
      if (!place) {
        old.appendChild(wanted);
        continue;
      }
      const next = place.nextSibling;
      if (place.nodeName !== wanted.nodeName || (place.id || "") !== (wanted.id || "")) old.replaceChild(wanted, place);
      else if (place.nodeType === Node.ELEMENT_NODE) morph(place, wanted);
      else if (place.nodeValue !== wanted.nodeValue) place.nodeValue = wanted.nodeValue;
      place = next;
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  function take(message) {
    const { title, news: said, over, parts } = JSON.parse(message.data);
    for (const [name, html] of Object.entries(parts)) {
      const part = document.getElementById("part-" + name);
      const fresh = document.createElement("template");
      fresh.innerHTML = html;
      if (part) children(part, fresh.content);
    }
    main.dataset.cursor = message.lastEventId;
    ended = over;
    document.title = title;
    if (news.textContent !== said) news.textContent = said;
    alive();
  }

  function say(text, broken) {
    if (link.textContent !== text) link.textContent = text;
    link.classList.toggle("broken", broken);
  }

  function alive() {
    say("Live", false);
    clearTimeout(timer);
    timer = setTimeout(again, SILENCE);
  }

  function again() {
    if (ended) say("The run is over.", false);
    else say("Not connected. If the coordinator was started again, open the address that it printed.", true);
    close();
    timer = setTimeout(open, RETRY);
  }

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  function open() {
    close();
    source = new EventSource("events?since=" + encodeURIComponent(main.dataset.cursor));
    source.onopen = alive;
    source.addEventListener("change", take);
    source.addEventListener("beat", alive);
    source.onerror = again;
  }

  let paused = false;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) {
      close();
      say("Paused", false);
    } else {
      open();
    }
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && !paused && open());
  open();
})();
