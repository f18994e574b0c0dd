"use strict";
// Follow the manager's changes and redraw the part of the page that shows them. Without this script the page is
// complete, it only does not move.
(function () {
  var fleet = document.getElementById("fleet");
  var live = document.getElementById("live");
  var busy = false;
  var again = false;

  function show(text, kind) {
    live.textContent = text;
    live.className = "tag " + kind;
  }

  function draw() {
    if (busy) { again = true; return; }
    busy = true;
    fetch("/fragment", { credentials: "same-origin", redirect: "manual" }).then(function (answer) {
      if (answer.type === "opaqueredirect") { window.location.assign("/login"); return null; }
      return answer.ok ? answer.text() : null;
    }).then(function (text) {
      if (text !== null) { fleet.innerHTML = text; }
    }).catch(function () { /* the stream says that the manager is away */ }).then(function () {
      busy = false;
      if (again) { again = false; draw(); }
    });
  }

  var stream = new EventSource("/v1/changes");
  stream.addEventListener("open", function () { show("live", "good"); });
  stream.addEventListener("error", function () { show("manager away", "bad"); });
  stream.addEventListener("change", draw);
  window.setInterval(draw, 15000); // "seen 15 s ago" changes by itself
})();
