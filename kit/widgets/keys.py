"""What ipywidgets lack.

A picture that takes mouse and arrow keys, a panel that keeps its keys and knows its width, and a
thumbnail under the pointer.
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
    """A thumbnail beside the pointer while it is over the picture of the panel around it.

    `pointed` is where the pointer is, in shares of the picture from its lower left. `source` and
    `words` are what to show there; without words nothing is shown.
    """

    _esm = """
    export default {
      render({ model, el }) {
        const box = document.createElement("figure"), image = document.createElement("img");
        const words = document.createElement("figcaption");
        box.className = "kit-thumbnail"; box.hidden = true;
        box.setAttribute("role", "tooltip");
        box.append(image, words);
        let over = false;
        const show = () => {
          image.src = model.get("source"); image.alt = words.textContent = model.get("words");
          box.hidden = !over || !model.get("words");
        };
        const watch = tries => {
          const panel = el.closest(".kit-panel");
          if (!panel) { if (tries) setTimeout(watch, 100, tries - 1); return; }  // not yet there
          panel.appendChild(box);
          panel.addEventListener("pointermove", event => {
            over = event.target.matches("img") && !event.buttons && !box.contains(event.target);
            if (!over) { box.hidden = true; return; }
            const here = event.target.getBoundingClientRect();
            const frame = panel.getBoundingClientRect();
            const x = (event.clientX - here.left) / here.width;
            const y = 1 - (event.clientY - here.top) / here.height;
            // towards the middle, so that it never leaves the panel
            const gap = 14, across = event.clientX - frame.left, down = event.clientY - frame.top;
            box.style.cssText = (x < 0.5 ? `left: ${across + gap}px;`
              : `right: ${frame.width - across + gap}px;`) + (y > 0.5 ? `top: ${down + gap}px`
              : `bottom: ${frame.height - down + gap}px`);
            model.set("pointed", [x, y]);
            model.save_changes();   // one message is under way at a time: a newer one replaces it
          });
          panel.addEventListener("pointerleave", () => { over = false; box.hidden = true; });
        };
        model.on("change:words", show);
        model.on("change:source", show);
        watch(100);
      }
    };
    """
    pointed = traitlets.List([0.0, 0.0]).tag(sync=True)
    source = traitlets.Unicode("").tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)
