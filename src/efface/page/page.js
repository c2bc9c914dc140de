// Pictures that are blurred until they are clicked, what is copied, and the run in the address of the tab.
document.addEventListener('click', (e) => {
  const copy = e.target.closest && e.target.closest('[data-copy]');
  if (copy) {
    navigator.clipboard.writeText(copy.closest('.code').querySelector('pre').innerText);
    copy.textContent = 'Copied';
  }
  const veil = e.target.closest && e.target.closest('.veil');
  if (veil) veil.classList.toggle('open');
});
// A slider that is moved by the keyboard is let go of with the key.
document.addEventListener('keyup', (e) => {
  if (e.target.matches && e.target.matches('input[type=range]') && /^(Arrow|Page|Home|End)/.test(e.key))
    e.target.dispatchEvent(new PointerEvent('pointerup', { bubbles: true }));
});
window.effaceRun = (element) => {
  const told = element.querySelector('[data-run]');
  if (!told) return;
  const run = told.dataset.run, here = new URL(window.location.href);
  if ((here.searchParams.get('run') || '') === run) return;
  if (run) here.searchParams.set('run', run); else here.searchParams.delete('run');
  window.history.replaceState(null, '', here);
};
