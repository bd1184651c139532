SwaggerUIBundle({
  url: "openapi.json", // beside the page, whatever stands before it
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null, // asks nobody on the internet
});
