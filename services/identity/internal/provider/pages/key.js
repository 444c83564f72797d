// Asks a security key what stands in the form, and sends its answer with it. It is the only script of these pages; without it codes are typed.
"use strict";
(() => {
  const form = document.getElementById("key");
  if (!form || !window.PublicKeyCredential) return;
  const button = form.querySelector("button"), said = form.querySelector("[role=alert]");
  const bytes = (s) => Uint8Array.from(atob(s.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (b) => b && btoa(String.fromCharCode(...new Uint8Array(b))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const named = (list) => (list || []).map((c) => ({ ...c, id: bytes(c.id) }));
  const answer = async () => {
    const o = JSON.parse(form.dataset.options).publicKey;
    o.challenge = bytes(o.challenge);
    if (o.user) {
      const c = await navigator.credentials.create({ publicKey: { ...o, user: { ...o.user, id: bytes(o.user.id) }, excludeCredentials: named(o.excludeCredentials) } });
      const r = c.response, transports = r.getTransports ? r.getTransports() : [];
      return { id: c.id, rawId: text(c.rawId), type: c.type, response: { clientDataJSON: text(r.clientDataJSON), attestationObject: text(r.attestationObject), transports } };
    }
    const c = await navigator.credentials.get({ publicKey: { ...o, allowCredentials: named(o.allowCredentials) } });
    const r = c.response;
    return {
      id: c.id, rawId: text(c.rawId), type: c.type,
      response: { clientDataJSON: text(r.clientDataJSON), authenticatorData: text(r.authenticatorData), signature: text(r.signature), userHandle: text(r.userHandle) || undefined },
    };
  };
  button.addEventListener("click", async () => {
    said.hidden = true;
    button.disabled = true;
    try {
      form.elements.namedItem("code").value = JSON.stringify(await answer());
      form.submit();
    } catch {
      said.hidden = false;
      button.disabled = false;
    }
  });
  button.hidden = false;
})();
