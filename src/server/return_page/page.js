// Asks for this page again until it has nothing more to wait for, and shows what has changed in it.
(() => {
    "use strict";

    // Together with how long an answer may take, in milliseconds.
    const FIRST_PAUSE = 2000;
    const LAST_PAUSE = 15000;
    const WAIT_MAX = 15 * 60 * 1000;
    const ANSWER_MAX = 10000;

    const main = document.querySelector("main[data-waiting]");
    let shown = main.innerHTML;
    let waited = 0;
    let timer = null;
    let asking = false;

    function show(text) {
        const page = new DOMParser().parseFromString(text, "text/html");
        const next = page.querySelector("main");
        // A page that knows nothing of the order is no news of it.
        if (!next || next.dataset.mood === "neutral") return;
        if (next.innerHTML !== shown) {
            shown = next.innerHTML;
            main.dataset.mood = next.dataset.mood;
            main.replaceChildren(...next.childNodes);
            document.title = page.title;
        }
        if (!("waiting" in next.dataset)) delete main.dataset.waiting;
    }

    async function ask() {
        const abort = new AbortController();
        const limit = setTimeout(() => abort.abort(), ANSWER_MAX);
        try {
            const answer = await fetch(location.href, { cache: "no-store", redirect: "error", signal: abort.signal });
            if (answer.ok) show(await answer.text());
        } catch {
            // No network for a moment: the next time will tell.
        } finally {
            clearTimeout(limit);
        }
    }

    async function askNow() {
        timer = null;
        asking = true;
        await ask();
        asking = false;
        plan();
    }

    function plan() {
        if (asking || timer !== null || document.hidden || !("waiting" in main.dataset)) return;
        if (waited >= WAIT_MAX) {
            main.dataset.stopped = "";
            return;
        }
        const pause = Math.min(FIRST_PAUSE + waited / 40, LAST_PAUSE);
        waited += pause;
        timer = setTimeout(askNow, pause);
    }

    document.addEventListener("visibilitychange", () => {
        if (document.hidden) {
            clearTimeout(timer);
            timer = null;
        } else if (!asking && timer === null && "waiting" in main.dataset) {
            // Who comes back wants to see it at once, and is waited with anew.
            waited = 0;
            delete main.dataset.stopped;
            askNow();
        }
    });

    plan();
})();
