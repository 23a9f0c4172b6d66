(() => {
  const shown = e => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const texts = [...document.querySelectorAll("body *")].filter(e => own(e) && shown(e) && !e.closest("script, style, noscript, title")
    && e.getBoundingClientRect().width > 1);
  // The colour behind an element: its nearest ancestor with an opaque background.
  const behind = e => {
    for (let a = e; a; a = a.parentElement) {
      const c = rgb(getComputedStyle(a).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const contrast = e => {
    const style = getComputedStyle(e), ink = light(rgb(e instanceof SVGElement ? style.fill : style.color)), paper = light(behind(e));
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const number = /^[\u2212+-]?[\d,.]+( x [\d,.]+)?%?$/;
  const cells = [...document.querySelectorAll("table td")].filter(e => shown(e) && number.test(e.textContent.trim()));
  // In a table and in a card alike, the last digit stands at the right edge of the cell's content.
  const right = e => {
    const range = document.createRange(); range.selectNodeContents(e);
    const box = e.getBoundingClientRect(), pad = parseFloat(getComputedStyle(e).paddingRight);
    return Math.abs(range.getBoundingClientRect().right - (box.right - pad)) < 2;
  };
  const outside = e => { const b = e.getBoundingClientRect(); return b.left < -0.5 || b.right > innerWidth + 0.5; };
  const sizes = texts.map(e => {
    const scale = e instanceof SVGElement && e.getScreenCTM ? Math.abs(e.getScreenCTM().a) : 1;
    return parseFloat(getComputedStyle(e).fontSize) * scale;
  });
  return {
    width: document.documentElement.scrollWidth,
    overflowing: texts.filter(outside).map(e => e.textContent),
    smallest: Math.min(...sizes),
    contrasts: texts.filter(e => contrast(e) < 4.5).map(e => [e.textContent, contrast(e)]),
    left_numbers: cells.filter(e => !right(e)).map(e => e.textContent),
    uneven_numbers: cells.filter(e => !getComputedStyle(e).fontVariantNumeric.includes("tabular")).map(e => e.textContent),
    clipped: [...document.querySelectorAll("svg text")].filter(e => shown(e) && (() => {
      const b = e.getBoundingClientRect(), around = e.closest("section").getBoundingClientRect();
      return b.left < around.left || b.right > around.right || b.top < around.top || b.bottom > around.bottom; })()).map(e => e.textContent),
    lang: document.documentElement.lang,
    h1: document.querySelectorAll("h1").length,
    verdict: document.querySelector(".verdict").textContent.trim(),
    open_details: document.querySelectorAll("details[open]").length,
    unlabelled: [...document.querySelectorAll("button, svg[role=img]")].filter(e => !(e.getAttribute("aria-label") || e.textContent.trim()))
      .map(e => e.outerHTML.slice(0, 80)),
    footer: document.querySelector("footer").textContent,
    background: rgb(getComputedStyle(document.body).backgroundColor),
  };
})()
