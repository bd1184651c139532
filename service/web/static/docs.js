// The page knows best at which address it is, whatever a proxy tells the service.
const here = () => ({
  statePlugins: {
    spec: {
      wrapActions: {
        updateJsonSpec: (update) => (spec) => update({ ...spec, servers: [{ url: new URL(".", location).href }] }),
      },
    },
  },
});

SwaggerUIBundle({
  url: "openapi.json", // beside the page, whatever stands before it
  dom_id: "#docs",
  plugins: [here],
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null, // asks nobody on the internet
});
