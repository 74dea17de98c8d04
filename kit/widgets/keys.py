"""What ipywidgets lack.

A picture that takes mouse and arrow keys, a panel that keeps its keys and knows its width, and a
thumbnail beside the pointer or a dot that keys chose.
"""

from __future__ import annotations

import anywidget
import traitlets

SCRIPT = """
export default {
  render({ model, el }) {
    const image = document.createElement("img");
    image.decoding = "sync";
    image.draggable = false;
    image.tabIndex = 0;
    image.setAttribute("role", "application");
    image.setAttribute("aria-roledescription", "picture to drag in");
    image.style.cssText = "touch-action: none; cursor: crosshair; user-select: none";
    const show = () => { image.src = model.get("src"); image.alt = model.get("alt"); };
    let presses = 0;
    const send = event => {
      const box = image.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width;
      const y = 1 - (event.clientY - box.top) / box.height;
      model.set("pointed", [x, y, presses]);
      model.save_changes();         // one message is under way at a time: a newer one replaces it
    };
    image.addEventListener("pointerdown", event => {
      image.setPointerCapture(event.pointerId); image.focus(); presses += 1; send(event);
    });
    image.addEventListener("pointermove", event => { if (event.buttons & 1) send(event); });
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    image.addEventListener("keydown", event => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault(); event.stopPropagation();
      const many = event.shiftKey ? 10 : 1, [right, up] = model.get("nudged");
      // sums: none is lost on the way
      model.set("nudged", [right + many * step[0], up + many * step[1]]);
      model.save_changes();
    });
    model.on("change:src", show);
    show();
    el.appendChild(image);
  }
};
"""


class Pad(anywidget.AnyWidget):
    """A picture to drag in.

    `src` and `alt` are shown. `pointed` is (x, y, presses so far), the place in shares of the
    picture from its lower left; `nudged` counts the arrow keys pressed so far, to the right and up.
    """

    _esm = SCRIPT
    src = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    pointed = traitlets.List([0.0, 0.0, 0]).tag(sync=True)
    nudged = traitlets.List([0, 0]).tag(sync=True)

    def __init__(self, alt: str):
        super().__init__(alt=alt)


class KeyGuard(anywidget.AnyWidget):
    """It shows nothing, and lets what has the focus in the panel around it keep its keys.

    Without it Jupyter takes the arrow keys for shortcuts of its own; Notebook 7 takes even those of
    a slider.
    """

    _esm = """
    export default {
      render({ el }) {
        const watch = tries => {
          const panel = el.closest(".kit-panel");
          if (panel) panel.addEventListener("focusin", event => {
            event.target.dataset.lmSuppressShortcuts = "true";
          });
          else if (tries) setTimeout(watch, 100, tries - 1);         // not on the page yet
        };
        watch(100);
      }
    };
    """


class WidthWatch(anywidget.AnyWidget):
    """It shows nothing, and keeps the `width` of the panel around it, in pixels; 0 before."""

    _esm = """
    export default {
      render({ model, el }) {
        const watch = tries => {
          const panel = el.closest(".kit-panel");
          if (panel) new ResizeObserver(() => {
            const width = panel.clientWidth;          // 0 where the panel is out of view
            if (!width || width === model.get("width")) return;
            model.set("width", width);
            model.save_changes();
          }).observe(panel);
          else if (tries) setTimeout(watch, 100, tries - 1);         // not on the page yet
        };
        watch(100);
      }
    };
    """
    width = traitlets.Int(0).tag(sync=True)


class Lens(anywidget.AnyWidget):
    """A line that steps through the dots that are images, and the thumbnail of one of them.

    The thumbnail stands beside the pointer while it is over the picture of the panel around it, and
    beside a dot while the line has the focus. `pointed` is where the pointer is, in shares of the
    picture from its lower left. `stepped` is the sum of the arrow keys pressed on the line so far,
    in images. `source` and `words` are what to show; without words nothing is shown. `dot` is the
    place of the dot that the keys chose, in the same shares, and [] for the pointer's; it is image
    `number` of `count`.
    """

    _esm = """
    const KEYS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    export default {
      render({ model, el }) {
        const make = (kind, name) => {
          const made = document.createElement(kind);
          made.className = name;
          return made;
        };
        const box = make("figure", "kit-thumbnail"), image = document.createElement("img");
        const words = document.createElement("figcaption"), ring = make("div", "kit-ring");
        box.hidden = ring.hidden = true;
        box.setAttribute("role", "tooltip");
        box.append(image, words);
        const line = make("div", "kit-step");
        line.tabIndex = 0;
        line.setAttribute("role", "spinbutton");   // a screen reader says its value
        line.setAttribute("aria-label", "image of a dot");
        line.setAttribute("aria-valuemin", 1);
        el.appendChild(line);
        let over = false, panel = null, pointer = [0, 0];
        // (x, y) in shares of the picture -> pixels of the panel, from its upper left
        const place = (x, y) => {
          const here = panel.querySelector("img").getBoundingClientRect();
          const frame = panel.getBoundingClientRect();
          return [here.left + x * here.width - frame.left,
            here.top + (1 - y) * here.height - frame.top];
        };
        // towards the middle, so that it never leaves the panel
        const put = (x, y) => {
          const gap = 14, [across, down] = place(x, y);
          box.style.cssText = (x < 0.5 ? `left: ${across + gap}px;`
            : `right: ${panel.clientWidth - across + gap}px;`) + (y > 0.5 ? `top: ${down + gap}px`
            : `bottom: ${panel.clientHeight - down + gap}px`);
        };
        const show = () => {
          const dot = model.get("dot"), said = model.get("words"), chosen = dot.length > 0;
          const number = model.get("number"), focused = document.activeElement === line;
          image.src = model.get("source"); image.alt = words.textContent = said;
          line.textContent = "Images, dot by dot: press ← or →, with Shift for ten"
            + (number ? ` (${number} of ${model.get("count")})` : "");
          line.setAttribute("aria-valuemax", model.get("count") || 1);
          line.setAttribute("aria-valuenow", number || 1);
          line.setAttribute("aria-valuetext", chosen && said ? said : "none yet");
          box.hidden = !panel || !said || !(chosen ? focused : over);
          ring.hidden = box.hidden || !chosen;
          if (!box.hidden) put(...(chosen ? dot : pointer));
          if (ring.hidden) return;
          const [across, down] = place(...dot);
          ring.style.cssText = `left: ${across}px; top: ${down}px`;
        };
        line.addEventListener("keydown", event => {
          const step = KEYS[event.key];
          if (!step) return;
          event.preventDefault(); event.stopPropagation();
          // a sum: none is lost on the way
          model.set("stepped", model.get("stepped") + step * (event.shiftKey ? 10 : 1));
          model.save_changes();
        });
        line.addEventListener("focus", show);
        line.addEventListener("blur", show);
        const watch = tries => {
          panel = el.closest(".kit-panel");
          if (!panel) { if (tries) setTimeout(watch, 100, tries - 1); return; }  // not yet there
          panel.append(ring, box);
          panel.addEventListener("pointermove", event => {
            // a picture that moves under a still pointer is not pointed at
            if (model.get("dot").length && !event.movementX && !event.movementY) return;
            over = event.target.matches("img") && !event.buttons && !box.contains(event.target);
            if (!over) { show(); return; }
            const here = event.target.getBoundingClientRect();
            pointer = [(event.clientX - here.left) / here.width,
              1 - (event.clientY - here.top) / here.height];
            show();
            model.set("pointed", pointer);
            model.save_changes();   // one message is under way at a time: a newer one replaces it
          });
          panel.addEventListener("pointerleave", () => { over = false; show(); });
        };
        for (const name of ["words", "source", "dot", "number"]) model.on(`change:${name}`, show);
        show();
        watch(100);
      }
    };
    """
    pointed = traitlets.List([0.0, 0.0]).tag(sync=True)
    stepped = traitlets.Int(0).tag(sync=True)
    source = traitlets.Unicode("").tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)
    dot: traitlets.List = traitlets.List([]).tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)
    count = traitlets.Int(0).tag(sync=True)
