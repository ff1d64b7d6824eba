// The key that this tab calls its node with, for as long as the tab is open: the session's store, never the disk's, never the address.

const NAME = "mf-key";
let here = "";

export function key() {
  try {
    return sessionStorage.getItem(NAME) ?? here;
  } catch {
    return here;
  }
}

export function keep(text) {
  here = text.trim();
  try {
    if (here) sessionStorage.setItem(NAME, here);
    else sessionStorage.removeItem(NAME);
  } catch {
    // A browser that stores nothing: the page has it until it is left.
  }
}

export const withKey = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

// The reply's error as somebody can read it: with its status, so that a missing key is told from everything else.
export async function failure(reply) {
  const body = await reply.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `HTTP ${reply.status}`);
  return Object.assign(error, { status: reply.status, suggestion: body?.error?.details?.suggestion ?? "" });
}
