// The pane of turns: it follows what comes while its reader is at the end, and stays where it is otherwise.

import { find } from "./dom.js";

const NEAR = 48; // px

export class Pane {
  #following = true;
  #top = 0;

  constructor() {
    this.element = find("turns");
    this.element.addEventListener("scroll", () => this.#look(), { passive: true });
    find("jump").addEventListener("click", () => {
      this.toEnd();
      this.element.focus({ preventScroll: true });
    });
    new ResizeObserver(() => this.follow()).observe(this.element);
  }

  /** The text may have grown. */
  follow() {
    const { element } = this;
    if (this.#following) element.scrollTop = element.scrollHeight;
    this.#top = element.scrollTop;
    find("jump").hidden = this.#following || this.#isNearEnd();
  }

  /** Goes to the end and follows again. */
  toEnd() {
    this.#following = true;
    this.follow();
  }

  /** Stops following when the reader scrolls up. Text that grows below the view does not stop it. */
  #look() {
    const { scrollTop } = this.element;
    if (this.#isNearEnd()) this.#following = true;
    else if (scrollTop < this.#top) this.#following = false;
    this.#top = scrollTop;
    find("jump").hidden = this.#following;
  }

  #isNearEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }
}
